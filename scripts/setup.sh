# Sourced by quickstart.sh and test.sh: makes .venv and installs into it, once. Needs Python 3.10 or newer, nothing else.
# usage: . scripts/setup.sh [EXTRA[,EXTRA ...]]

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
    python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "$python is not Python 3.10 or newer; name one with PYTHON=/path/to/python bash $0" >&2
        exit 2
    fi
    echo "making .venv ..." >&2
    "$python" -m venv .venv
fi

# What was installed, and from which pins: when these are unchanged there is nothing to do.
wanted="$(cat pyproject.toml scripts/constraints.txt | cksum) ${1:-}"
if ! grep -qxF "$wanted" .venv/installed 2>/dev/null; then
    echo "installing (some minutes, once) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt \
        --editable ".${1:+[$1]}"
    echo "$wanted" >>.venv/installed
fi
