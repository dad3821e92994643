#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [pytest arguments]. Makes .venv and installs what is missing first.
# HF_GPT_EXTRAS: the extras to install, `test` by default; with `test,clients` the tests of other tools run too.
set -euo pipefail
. "$(dirname "$0")/setup.sh" "${HF_GPT_EXTRAS:-test}"
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
# As many tests at once as there are cores: most are too small to use more than one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
