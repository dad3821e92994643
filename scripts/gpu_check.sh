#!/usr/bin/env bash
# What only a GPU shows, in one command of under ten minutes that needs no network and no data. It prints one report.
#   bash scripts/gpu_check.sh [--processes N] [--out FOLDER] [--only STEP ...] [--wheels FOLDER]
#   bash scripts/gpu_check.sh --device cpu        a rehearsal without a GPU, with tiny models, in a minute or two
# Exit code: 0; 1 if a step failed; 2 if there is no GPU, or a package is missing or too old.
#
# Where there is no network, and what pyproject.toml asks for is missing or older (transformers before 5.18, say), bring
# it as wheels. Where there is a network, for the Python and the system of the other machine:
#   pip wheel --no-deps --wheel-dir wheels .
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#       --dest wheels transformers==5.23.0 huggingface_hub==2.4.0 ... pytest==9.2.0 pytest-timeout==2.4.0 hypothesis==6.170.15
# (versions: scripts/constraints.txt; not torch, which the other machine has) and take the folder along: --wheels wheels.
# They are installed into build/gpu_check, which only this script looks into. What is still missing is named in one line.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="${PYTHON:-$(command -v python3 || command -v python)}"
export PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}"

arguments=()
while [ $# -gt 0 ]; do
    if [ "$1" = --wheels ]; then
        "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$root/build/gpu_check" "${2:?}"/*.whl
        export PYTHONPATH="$root:$root/scripts:$root/build/gpu_check:$PYTHONPATH"
        shift 2
    else
        arguments+=("$1")
        shift
    fi
done
exec "$python" -m benchmarks.gpu ${arguments[@]+"${arguments[@]}"}
