"""The commands that judge a model: ``evaluate`` and ``report``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from generative.cli.options import add, add_clips, add_held_out, add_repeated, add_run


def register(commands: Any) -> None:
    """Adds the commands of this file."""
    p = commands.add_parser("evaluate", help="bits per code, Fréchet distance, class agreement")
    p.set_defaults(run=_evaluate)
    add_run(p)
    p.add_argument("data", help="the dataset that the run was trained on, or its address")
    add(p, "--clips", "N", 64, "clips to generate")
    p.add_argument("--json", type=Path, help="file to write the figures to; default: none")
    add_held_out(p)
    add_clips(p)

    p = commands.add_parser("report", help="one HTML page of clips, curves and figures")
    p.set_defaults(run=_report)
    p.add_argument("clips", nargs="*", type=Path, help="folders that `sample` wrote")
    p.add_argument("--out", type=Path, required=True, help="HTML file to write")
    text = "run whose curves to show; may be repeated; default: none"
    add_repeated(p, "--run", text, dest="run_folder", type=Path)
    text = "JSON file of `evaluate`; may be repeated; default: none"
    add_repeated(p, "--evaluation", text, type=Path)
    add(p, "--title", None, "Generated audio", "title of the page")


def _evaluate(options: argparse.Namespace) -> None:
    from generative.evaluation.trained_run import evaluate_run
    from tokenizer.saving import write_json

    if options.json is not None:
        # Before hours of work rather than after them.
        options.json.parent.mkdir(parents=True, exist_ok=True)
    result = evaluate_run(
        options.run_folder,
        options.data,
        tokenizer=options.tokenizer,
        clips=options.clips,
        seconds=options.seconds,
        guidance_scale=options.guidance,
        seed=options.seed,
        held_out=options.held_out,
        device=options.device,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(result, indent=1))
    if options.json is not None:
        write_json(options.json, result)


def _report(options: argparse.Namespace) -> None:
    from generative.evaluation.report import write_report

    write_report(
        options.out,
        options.clips,
        runs=options.run_folder,
        evaluations=options.evaluation,
        title=options.title,
    )
    print(options.out)
