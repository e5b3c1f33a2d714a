#!/bin/sh
# Sets up .venv if needed and runs `latok demo`:  sh demo.sh [FILE] [options; see sh demo.sh --help]
set -eu
root=$(cd "$(dirname "$0")" && pwd)
. "$root/setup.sh"

set_up ""
exec "$venv/bin/latok" demo "$@"
