#!/usr/bin/env bash
# Train a small GPT on the documentation that comes with Python, in a few minutes on two cores, and let it write.
# bash scripts/quickstart.sh [--section.key VALUE ...]     Running it again resumes it where it stopped, or shows the result.
set -euo pipefail
. "$(dirname "$0")/setup.sh" ""  # no extra: without an argument it would get those of this script
.venv/bin/hf-gpt train configs/quickstart.yaml "$@"
