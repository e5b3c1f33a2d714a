# Sourced by demo.sh and test.sh, which set $root to this folder. Needs nothing but Python >= 3.11.
#
# set_up "[report]"  makes $root/.venv with latent-tokenizer (editable) and that extra, in the versions of
#                    constraints.txt
# set_up "[test]"    the same with all extras and what the checks need
#
# A second call finds its stamp and returns at once. pip's own settings (PIP_INDEX_URL,
# PIP_FIND_LINKS, ...) decide where packages, and which build of torch, come from.

venv=$root/.venv
python=${PYTHON:-python3}

fail() {
    echo "$0: $*" >&2
    exit 1
}

install() {
    # Progress bars for people, silence for logs.
    if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check \
        -c "$root/constraints.txt" "$@" || fail "pip failed; run the same command again to go on"
}

set_up() {
    # A moved folder counts as another: an editable install knows its path.
    key=$({ echo "$root"; cat "$root/pyproject.toml" "$root/constraints.txt"; } | cksum)
    # What has the test extra has everything else too.
    for stamp in "$venv/set-up$1" "$venv/set-up[test]"; do
        if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
            return
        fi
    done

    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        fail "'$python' does not run. Install Python 3.11 or newer, or name one: PYTHON=/path/to/python sh $0"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$python' is Python $version, but 3.11 or newer is needed. Name one: PYTHON=python3.12 sh $0"

    echo "Setting up $venv (once; takes minutes) ..."
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" ||
        fail "'$python -m venv' failed. On Debian and Ubuntu: apt install python3-venv"
    # torch on its own, so that pip settles on one build of it before anything else asks for it.
    install torch
    install -e "$root$1"
    echo "$key" >"$venv/set-up$1"
}
