"""Fuzzing guided by coverage, with atheris (``pip install atheris``); not part of CI.

    python tests/support/fuzz/run.py sealed-code-file -max_total_time=600
    python tests/support/fuzz/run.py --list

The first argument is a way in (`hostile.WAYS`), the rest goes to libFuzzer. It starts from good
inputs and from those in tests/data/failures/ of the same name. What does harm is written to the
current folder as ``crash-...``: mend the bug and add the file to tests/data/failures/WAY/.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS / "support"))

# What is measured: our own readers and the parsers of the standard library under them.
with atheris.instrument_imports(
    include=["tokenizer", "datasets_scripts", "tarfile", "zipfile", "json", "csv"]
):
    import hostile


def main() -> None:
    """Fuzzes one way in until libFuzzer's limits, or until something breaks."""
    if len(sys.argv) < 2 or sys.argv[1] not in hostile.WAYS:
        sys.exit("\n".join(["Name a way in:", *hostile.WAYS]))
    name = sys.argv.pop(1)
    read, seeds = hostile.WAYS[name]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="latok-fuzz-") as folder:
        known = (TESTS / "data" / "failures" / name).glob("*")
        starts = [*seeds(), *(path.read_bytes() for path in known)]
        for number, seed in enumerate(starts):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        # A seed of many kB is mutated in places that do not matter; memory is bounded in MiB.
        options = ["-timeout=60", "-rss_limit_mb=4096", f"-max_len={2 * max(map(len, starts))}"]
        atheris.Setup(
            [sys.argv[0], *options, *sys.argv[1:], folder],
            lambda data: hostile.survives(read, data) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
