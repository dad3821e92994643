#!/usr/bin/env bash
# Run the tests: bash scripts/test.sh [pytest arguments]. Makes .venv and installs what is missing first.
set -euo pipefail
. "$(dirname "$0")/setup.sh" test
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
exec .venv/bin/python -m pytest "$@"
