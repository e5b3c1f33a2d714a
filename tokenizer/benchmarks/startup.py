"""What it takes until something runs: imports, and the command line on a clip of one second.

python -m tokenizer.benchmarks.startup
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile

from tokenizer.benchmarks.command import table
from tokenizer.benchmarks.peers import clip

REPETITIONS = 5
STATEMENTS = {
    "python": "pass",
    "import torch": "import torch",
    "import tokenizer": "import tokenizer",
    "import tokenizer, its model class": "from tokenizer import LatentTokenizer",
    "import the ONNX runner, onnxruntime": "import tokenizer.export.onnx_runner, onnxruntime",
    "load for coding": "from tokenizer.model.loading import load_core; load_core()",
    "load the bundled model": "from tokenizer import load_tokenizer; load_tokenizer()",
}


def startup_lines() -> list[dict[str, Any]]:
    """Seconds of a processor that each takes, the least of several; they take turns."""
    commands = {name: ["-c", statement] for name, statement in STATEMENTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        wav, out = (str(Path(folder) / name) for name in ("a.wav", "a.ltk"))
        soundfile.write(wav, clip(1.0, 44_100).T, 44_100)
        commands["latok encode, 1 s"] = ["-m", "tokenizer", "encode", wav, out]
        commands["latok decode, 1 s"] = ["-m", "tokenizer", "decode", out, wav]
        commands["latok --help"] = ["-m", "tokenizer", "--help"]
        commands["latok info, a code file"] = ["-m", "tokenizer", "info", out]
        best = dict.fromkeys(commands, float("inf"))
        for _ in range(REPETITIONS):
            for name, command in commands.items():
                best[name] = min(best[name], _cpu_seconds([sys.executable, *command]))
    base = best["import torch"]
    return [
        {"start": name, "seconds": seconds, "of_import_torch": seconds / base}
        for name, seconds in best.items()
    ]


def _cpu_seconds(command: list[str]) -> float:
    """What a process and those that it starts take; waiting for a busy machine is not counted."""
    # Modules are compiled once, as where Python may keep the result.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = sum(os.times()[2:4])  # The user and system time of children.
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return sum(os.times()[2:4]) - before


if __name__ == "__main__":
    print(table(startup_lines()))
