#!/bin/sh
# Sets up .venv if needed, runs `latok demo`, and generates clips with the models of the package:
#
#   sh demo.sh                    the example clip at every rate, then generated clips and their page
#   sh demo.sh FILE [options]     the same of your file, without generated clips; see sh demo.sh --help
set -eu
root=$(cd "$(dirname "$0")" && pwd)
. "$root/setup.sh"

set_up "[generative,report]"
[ $# -eq 0 ] || exec "$venv/bin/latok" demo "$@"

"$venv/bin/latok" demo
generate() {
    "$venv/bin/python" -m generative "$@"
}
generate sample lm --label all --out latok-demo/generated/lm
generate sample diffusion --label all --out latok-demo/generated/diffusion
generate report latok-demo/generated/lm latok-demo/generated/diffusion --out latok-demo/generated.html
