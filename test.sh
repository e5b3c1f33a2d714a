#!/bin/sh
# Sets up .venv if needed and runs every check; arguments go to pytest:  sh test.sh -k rows
set -eu
root=$(cd "$(dirname "$0")" && pwd)
. "$root/setup.sh"

set_up "[test]"
cd "$root"
PATH=$venv/bin:$PATH
# Tests are many small operations in several processes: more threads only get in each other's way.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# pyright need not ask the network whether there is a newer one.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1
export PATH OMP_NUM_THREADS PYRIGHT_PYTHON_IGNORE_WARNINGS

ruff check
ruff format --check
pyright
# Whole files go to as many processes as there are cores, four at most: each loads torch.
exec pytest -n auto --maxprocesses 4 --dist loadfile \
    --jaxtyping-packages=tokenizer,generative,datasets_scripts,beartype.beartype "$@"
