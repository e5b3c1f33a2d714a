"""Peak memory of coding a long file through the command line.

    python -m tokenizer.benchmarks.memory [--minutes 60]

Runs ``latok encode`` and ``latok decode`` on noise of that length in processes of their own, and
prints the peak resident memory of each beside that of a process that only loads the model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from tokenizer.benchmarks.command import benchmark_parser, table
from tokenizer.evaluation.coding import timed

RATE = 44_100
SCRIPT = """
import sys
from tokenizer.benchmarks.machine import peak_mib
from tokenizer.cli import main
code = main(sys.argv[1:])
print(peak_mib(), file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the file")
    parser.add_argument("--codebooks", default="16", help="number of codebooks")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        wav, ltk, out = (str(Path(folder) / name) for name in ("long.wav", "long.ltk", "back.wav"))
        with soundfile.SoundFile(wav, "w", samplerate=RATE, channels=1) as stream:
            for _ in range(round(options.minutes * 60)):
                stream.write((rng.normal(0, 0.1, RATE) * np.hanning(RATE)).astype(np.float32))
        runs = {
            "load the model only": ["info"],
            "encode": ["encode", wav, ltk, "--codebooks", options.codebooks],
            "decode": ["decode", ltk, out],
        }
        for name, arguments in runs.items():
            command = [sys.executable, "-c", SCRIPT, *arguments]
            done, seconds = timed(
                lambda c=command: subprocess.run(c, capture_output=True, text=True, check=True)
            )
            line = {"": name, "peak_MiB": float(done.stderr.split()[-1]), "seconds": seconds}
            speed = None if name.startswith("load") else 60 * options.minutes / seconds
            lines.append(line | {"x_real_time": speed})
        assert soundfile.info(out).frames == soundfile.info(wav).frames
    print(f"One file of {options.minutes:g} minutes, mono, 44.1 kHz")
    print(table(lines))


if __name__ == "__main__":
    main()
