"""`hf-gpt train`, as a file for launchers: accelerate launch scripts/train.py RECIPE.yaml [--section.key VALUE ...]"""

import sys

from hf_gpt.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
