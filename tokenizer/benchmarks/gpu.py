"""What to check on the first day with a GPU: right codes, speed, and what holds it back.

    python -m tokenizer.benchmarks.gpu --device cuda --audio DIR [--quick] [--only NAME ...]

Prints one JSON line a check, with the seconds that it took. A check that fails says so in its line,
and the next one runs; the command ends with 1 if any did. No speed counts before ``codec_equality``
holds. ``--device cpu --quick`` rehearses all of it in a minute.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tokenizer.benchmarks.command import benchmark_parser
from tokenizer.benchmarks.gpu_checks import CHECKS, Setup
from tokenizer.benchmarks.machine import describe


def run(setup: Setup, names: list[str]) -> bool:
    """Prints each check's line; whether all passed."""
    passed = True
    for name in names:
        start = time.perf_counter()
        line: dict[str, Any] = {"check": name}
        try:
            line |= CHECKS[name](setup)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            line["failed"] = f"{type(error).__name__}: {error}"[:600]
        passed = passed and "failed" not in line
        line["seconds"] = round(time.perf_counter() - start, 1)
        print(json.dumps(line), flush=True)
    return passed


def main() -> None:
    """Runs the checks."""
    parser = benchmark_parser(__doc__, "--device")
    parser.add_argument("--audio", type=Path, help="folder to train on; default: noise")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to rehearse the checks")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(CHECKS), default=list(CHECKS), help="checks to run"
    )
    options = parser.parse_args()
    print(json.dumps({"machine": describe(options.device)}), flush=True)
    if not run(Setup(options.device, options.quick, options.audio), options.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
