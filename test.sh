#!/bin/sh
# Sets up .venv if needed and runs the checks:
#
#   sh test.sh                everything
#   sh test.sh --quick        some minutes on two cores: without type checks, and without tests
#                             marked `slow` (the site, faults, browsers, other processes, examples)
#
# Further arguments go to pytest:  sh test.sh --quick -k rows
set -eu
root=$(cd "$(dirname "$0")" && pwd)
. "$root/setup.sh"

quick=
if [ "${1:-}" = --quick ]; then
    quick=1
    shift
    set -- -m "not slow" "$@"
fi

set_up "[test]"
cd "$root"
PATH=$venv/bin:$PATH
# Each test process computes on one thread: the processes together use all cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Keeps pyright from asking the network for a newer version of itself.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1
export PATH OMP_NUM_THREADS PYRIGHT_PYTHON_IGNORE_WARNINGS

ruff check
ruff format --check
[ -n "$quick" ] || pyright
# One process a core, four at most because each loads torch; a file's tests stay in one process.
exec pytest -n auto --maxprocesses 4 --dist loadfile \
    --jaxtyping-packages=tokenizer,generative,datasets_scripts,beartype.beartype "$@"
