#!/usr/bin/env bash
# Makes or updates the virtual environment. First it checks what the system must bring along.
# Usage: ./setup.sh PYTHON VENV
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
venv=${2:-.venv}
missing=()

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

if command -v "$python" >/dev/null; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: Python 3.10 or newer is needed" \
            "name another one: make SYSTEM_PYTHON=python3.12 …"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing+=(python3-dev)
else
    missing+=(python3 python3-venv python3-dev)
fi
command -v g++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)

if [ ${#missing[@]} -gt 0 ]; then
    fail "this system lacks: ${missing[*]}" "install it with: sudo apt-get install -y ${missing[*]}"
fi

# An environment whose interpreter has gone is useless.
if [ -e "$venv" ] && ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
fi
if [ ! -e "$venv" ]; then
    echo "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
echo "installing (5 to 6 GB with torch for CUDA, some minutes the first time)"
# DeepSpeed compiles nothing here: its operators are built where and when they are used.
DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar on --editable '.[dev]'
