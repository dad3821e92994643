"""`python -m hf_gpt.cli` is `hf-gpt`."""

import sys

from . import main

sys.exit(main())
