"""The command ``export-llm``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from generative.cli.options import add_run


def register(commands: Any) -> None:
    """Adds the command."""
    p = commands.add_parser(
        "export-llm", help="write a flatten-pattern language model as a plain Llama"
    )
    p.set_defaults(run=_export)
    add_run(p)
    p.add_argument("--out", type=Path, required=True, help="folder to write")


def _export(options: argparse.Namespace) -> None:
    from generative.runs.llm_export import export_llm

    export_llm(options.run_folder, options.out, tokenizer=options.tokenizer)
    print(f"{options.out}: classes are tokens; captions and guidance are not in it")
