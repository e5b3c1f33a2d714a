"""Peak memory of coding a long file through the command line.

    python -m tokenizer.benchmarks.memory [--minutes 60]

Writes a noise file of that length to a temporary folder, runs ``latok encode`` and ``latok decode``
on it in processes of their own, and prints the peak resident memory of each beside that of a
process that only loads the model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from tokenizer.benchmarks.command import benchmark_parser
from tokenizer.evaluation.evaluate import as_table

RATE = 44_100


def _run(arguments: list[str]) -> tuple[float, float]:
    """Runs ``latok``; returns seconds and the peak resident memory in MiB."""
    script = (
        "import resource, sys; from tokenizer.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr);"
        "sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return time.perf_counter() - start, int(done.stderr.split()[-1]) / unit


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the file")
    parser.add_argument("--codebooks", default="16", help="number of codebooks")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        wav, ltk, out = (Path(folder) / name for name in ("long.wav", "long.ltk", "back.wav"))
        with soundfile.SoundFile(wav, "w", samplerate=RATE, channels=1) as stream:
            for _ in range(round(options.minutes * 60)):
                stream.write((rng.normal(0, 0.1, RATE) * np.hanning(RATE)).astype(np.float32))
        runs = {
            "load the model only": ["info"],
            "encode": ["encode", str(wav), str(ltk), "--codebooks", options.codebooks],
            "decode": ["decode", str(ltk), str(out)],
        }
        rows = []
        for name, arguments in runs.items():
            seconds, peak = _run(arguments)
            speed = "" if name.startswith("load") else f"{60 * options.minutes / seconds:.0f}"
            rows.append([name, f"{peak:.0f}", f"{seconds:.1f}", speed])
        assert soundfile.info(out).frames == soundfile.info(wav).frames
    print(f"One file of {options.minutes:g} minutes, mono, 44.1 kHz")
    print(as_table(rows, ["", "peak MiB", "seconds", "x real time"]))


if __name__ == "__main__":
    main()
