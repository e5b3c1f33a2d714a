"""What the benchmarks share: options, processes of their own, tables, figures as JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizer.evaluation.evaluate import as_table
from tokenizer.saving import write_json

_OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"default": "cpu", "help": "torch device"},
    "--json": {"type": Path, "help": "also write the figures to this file"},
    "--latents": {"type": Path, "help": ".npy file of latents [M, D]; default: a random mixture"},
    "--model": {"help": "tokenizer folder or hub id; default: the bundled one"},
    "--out": {"type": Path, "default": Path("benchmark"), "help": "folder to write to"},
    "--repetitions": {"type": int, "default": 3, "help": "of which the fastest one counts"},
    "--seconds": {"type": float, "default": 10.0, "help": "length of the clip"},
    "--threads": {"type": int, "default": 2, "help": "CPU threads"},
}


class _Help(argparse.HelpFormatter):
    """Adds the default to an option's help, where it has one and the text names none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return text
        value = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text}; default: {value}".replace("%", "%%") if value != "" else text


def benchmark_parser(doc: str | None, *options: str) -> argparse.ArgumentParser:
    """A parser with some of the shared options; the first line of ``doc`` is its description."""
    description = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    for name in options:
        parser.add_argument(name, **_OPTIONS[name])
    return parser


def in_process(benchmark: str, *arguments: object) -> Any:
    """The figures that a benchmark writes when it runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        words = ["-m", f"tokenizer.benchmarks.{benchmark}", *arguments, "--json", path]
        command = [sys.executable, *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(path.read_text())


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines with the same keys as a Markdown table."""

    def show(value: Any) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"

    rows = [[show(value) for value in line.values()] for line in lines]
    return as_table(rows, [name.replace("_", " ") for name in lines[0]])


def write_figures(path: Path | None, figures: Any) -> None:
    """Writes what ``--json`` asks for."""
    if path is not None:
        write_json(path, figures)
