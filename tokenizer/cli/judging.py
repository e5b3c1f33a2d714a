"""``latok evaluate``: how good a tokenizer is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizer.cli.options import add_model, load


def _evaluate(options: argparse.Namespace) -> None:
    from tokenizer.data import scan
    from tokenizer.evaluation import default_conditions, evaluate, evaluation_table

    tokenizer = load(options.model, options.device)
    conditions = default_conditions(tokenizer, [1000 * rate for rate in options.bitrates])
    result = evaluate(tokenizer, scan(options.audio), conditions)
    print(evaluation_table(result))
    if options.json:
        temporary = options.json.with_name(options.json.name + ".partial")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(options.json)


def register(commands: Any, command: str | None) -> None:  # noqa: ARG001
    """Adds the commands' parsers; none of their options needs torch."""
    p = commands.add_parser("evaluate", help="quality, rate and speed over a folder")
    p.set_defaults(run=_evaluate)
    p.add_argument("audio", help="folder of audio")
    p.add_argument("--bitrates", type=float, nargs="+", default=[24, 16, 10, 3], help="kbit/s")
    p.add_argument("--json", type=Path, help="also write everything, clip by clip")
    add_model(p)
