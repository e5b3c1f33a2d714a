"""``python -m generative``: train, sample, evaluate, report.

python -m generative train-lm TOKENS --out runs/lm --codebooks 4 --pattern delay --steps 20000
python -m generative train-diffusion TOKENS --out runs/diffusion --steps 20000
python -m generative sample runs/diffusion --label music --seconds 5 --count 4 --out clips
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tokenizer.command import run_command
from tokenizer.errors import InputError

# Options of the models that are not sizes of the command line's own making.
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "lm": {"pattern": "delay", "width": 384, "depth": 6, "heads": 6, "text_encoder": None},
    "diffusion": {"width": 384, "depth": 8, "heads": 6, "patch_frames": 2, "text_encoder": None},
}
_HELP = {
    "pattern": "order of the codes: delay, parallel, flatten or coarse_first",
    "text_encoder": "transformers text encoder (name or folder) for captions; default: none",
    "patch_frames": "frames per token of the transformer",
}


def _train(options: argparse.Namespace, family: str) -> None:
    from generative.runs.families import train_diffusion, train_language_model
    from generative.runs.prepared_data import training_splits
    from generative.training.training_config import TrainingConfig

    values = {f.name: getattr(options, f.name) for f in fields(TrainingConfig)}
    shared: dict[str, Any] = {
        "tokenizer": options.tokenizer,
        "held_out": options.held_out,
        "progress": sys.stderr.isatty(),
        **{name: getattr(options, name) for name in MODEL_OPTIONS[family]},
    }
    config = TrainingConfig(**values)
    train, held_out = training_splits(options.data)
    print(
        f"Training on {', '.join(train)}; validating on"
        f" {', '.join(held_out) or 'sources held out of that'}.",
        flush=True,
    )
    if family == "lm":
        train_language_model(
            options.data, options.out, config, n_codebooks=options.codebooks, **shared
        )
    else:
        train_diffusion(options.data, options.out, config, detail=options.detail, **shared)
    print(f"Model: {options.out / 'model'}")


def _sample(options: argparse.Namespace) -> None:
    from generative.protocol import CodeSampling, DiffusionSampling
    from generative.runs.generation import generate, make_request, save_clips
    from generative.runs.loading import load_run

    model, tokenizer, info = load_run(options.run_folder, options.tokenizer, options.device)
    if options.snap is not None and info["column"] == "codes":
        raise InputError("--snap is for diffusion; a language model's codes are codes already.")
    asked = _conditions(options, tuple(info["labels"]))
    request = make_request(
        tokenizer,
        options.seconds,
        labels=[label for label, _ in asked],
        captions=[caption for _, caption in asked] if options.caption else (),
        prompt=options.prompt,
        n_codebooks=info.get("n_codebooks"),
        guidance_scale=options.guidance,
        codes=CodeSampling(options.temperature, options.top_k, options.top_p, stop=options.stop),
        diffusion=DiffusionSampling(options.steps, options.solver),
    )
    clips = generate(
        model,
        tokenizer,
        request,
        seed=options.seed,
        snap_codebooks=options.snap,
        batch_size=options.batch_size,
    )
    said = ("seconds", "seed", "guidance", "prompt", "snap")
    said += (
        ("temperature", "top_k", "top_p", "stop")
        if info["column"] == "codes"
        else ("steps", "solver")
    )
    description = {"run": str(options.run_folder), "family": info["family"]}
    description |= {name: _plain(getattr(options, name)) for name in said}
    entries = save_clips(
        clips, options.out, tokenizer.sampling_rate, description, pictures=options.pictures
    )
    print(f"{options.out}: {len(entries)} clips of {options.seconds:g} s")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _conditions(
    options: argparse.Namespace, known: tuple[str, ...]
) -> list[tuple[str | None, str | None]]:
    """Label and caption of each clip: ``count`` of every label and caption that was asked for."""
    labels: list[str | None] = list(options.label) or [None]
    if options.label == ["all"]:
        labels = list(known) or [None]
    captions: list[str | None] = list(options.caption) or [None]
    return [(label, text) for label in labels for text in captions for _ in range(options.count)]


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


def _export(options: argparse.Namespace) -> None:
    from generative.runs.export import export_run

    export_run(options.run_folder, options.out, tokenizer=options.tokenizer, half=options.half)
    print(options.out)


def _app(options: argparse.Namespace) -> None:
    from generative.runs.app import app_parts
    from tokenizer import launch_app

    models, generators = app_parts(options.run_folders, options.tokenizer, options.device)
    app = launch_app(
        models,
        generators,
        host=options.host,
        port=options.port,
        open_browser=options.browser,
    )
    print(f"Open {app.address} in a browser. Ctrl-C ends it.", flush=True)
    app.wait()


def _add_training(parser: argparse.ArgumentParser) -> None:
    from generative.training.training_config import TrainingConfig

    group = parser.add_argument_group("training")
    for field in fields(TrainingConfig):
        name = "--" + field.name.replace("_", "-")
        if field.default is MISSING:
            group.add_argument(name, type=int, required=True)
        else:
            kind = type(field.default)
            group.add_argument(
                name, type=kind, default=field.default, help=f"default: {field.default}"
            )


def _add_model(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> None:
    group = parser.add_argument_group("model")
    for key, default in options.items():
        kind = str if default is None else type(default)
        text = _HELP.get(key, "")
        text += "" if default is None else f"{'; ' if text else ''}default: {default}"
        group.add_argument("--" + key.replace("_", "-"), type=kind, default=default, help=text)


def _add_tokenizer(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--tokenizer", help=f"tokenizer folder or hub id; default: {default}")


def _add_held_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.05,
        help="share of the sources to validate on, if the dataset has no split; default: 0.05",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a finished run")
    _add_tokenizer(parser, "the run's")


def _add_drawing(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--seconds", type=float, default=seconds, help=f"default: {seconds:g}")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--guidance", type=float, default=2.0, help="1 is none; default: 2")
    parser.add_argument("--device", default="cpu", help="torch device; default: cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generative", description="Language models of codes, diffusion models of latents."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, family, what in (
        ("train-lm", "lm", "a language model on the codes"),
        ("train-diffusion", "diffusion", "a diffusion model on the latents"),
    ):
        p = commands.add_parser(name, help=f"train {what} of a prepared dataset")
        p.set_defaults(run=_training(family))
        p.add_argument("data", type=Path, help="dataset of `python -m datasets_scripts prepare`")
        p.add_argument("--out", type=Path, required=True, help="folder of the run; resumes")
        _add_tokenizer(p, "the bundled one")
        _add_held_out(p)
        if family == "lm":
            p.add_argument("--codebooks", type=int, help="learn the first ones; default: all")
        else:
            p.add_argument(
                "--detail",
                action="store_true",
                help="learn all latents; default: those that codes stand for",
            )
        _add_model(p, MODEL_OPTIONS[family])
        _add_training(p)

    p = commands.add_parser("sample", help="generate clips")
    p.set_defaults(run=_sample)
    _add_run(p)
    p.add_argument("--out", type=Path, required=True, help="folder for WAV, PNG, samples.json")
    p.add_argument(
        "--label", action="append", default=[], help="class; may be repeated; all: every one"
    )
    p.add_argument("--caption", action="append", default=[], help="text; may be repeated")
    p.add_argument("--count", type=int, default=1, help="clips of each; default: 1")
    p.add_argument("--prompt", type=Path, help="audio file that the clips continue")
    _add_drawing(p, 5.0)
    p.add_argument("--batch-size", type=int, default=8, help="clips at once; default: 8")
    p.add_argument("--temperature", type=float, default=1.0, help="language models; default: 1")
    p.add_argument("--top-k", type=int, help="language models; default: all codes")
    p.add_argument("--top-p", type=float, help="language models; default: all codes")
    p.add_argument(
        "--stop", action="store_true", help="language models: let clips end where the model says so"
    )
    p.add_argument("--steps", type=int, default=25, help="diffusion; default: 25")
    p.add_argument("--solver", choices=("euler", "dpm++"), default="euler", help="diffusion")
    p.add_argument("--snap", type=int, metavar="N", help="diffusion: round to codes of N codebooks")
    p.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True, help="spectrograms"
    )

    p = commands.add_parser("evaluate", help="bits per code, Fréchet distance, agreement")
    p.set_defaults(run=_evaluate)
    _add_run(p)
    p.add_argument("data", type=Path, help="the dataset that the run was trained on")
    p.add_argument("--clips", type=int, default=64, help="clips to generate; default: 64")
    p.add_argument("--json", type=Path, help="also write the figures to this file")
    _add_held_out(p)
    _add_drawing(p, 5.0)

    p = commands.add_parser("report", help="one HTML page of clips, curves and figures")
    p.set_defaults(run=_report)
    p.add_argument("clips", nargs="*", type=Path, help="folders that `sample` wrote")
    p.add_argument("--out", type=Path, required=True, help="HTML file")
    p.add_argument(
        "--run", dest="run_folder", action="append", default=[], type=Path, help="show its curves"
    )
    p.add_argument("--evaluation", action="append", default=[], type=Path, help="JSON of evaluate")
    p.add_argument("--title", default="Generated audio")

    p = commands.add_parser("app", help="listen in a browser: code files, and generate")
    p.set_defaults(run=_app)
    p.add_argument(
        "run_folders", metavar="RUN", nargs="+", type=Path, help="folder of a finished run"
    )
    _add_tokenizer(p, "the run's")
    p.add_argument("--host", default="127.0.0.1", help="whom to serve; default: this machine alone")
    p.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    p.add_argument("--browser", action="store_true", help="open the page in the browser")
    p.add_argument("--device", default="cpu", help="torch device; default: cpu")

    p = commands.add_parser("export", help="a run and its tokenizer as one folder")
    p.set_defaults(run=_export)
    _add_run(p)
    p.add_argument("out", type=Path, help="folder to write")
    p.add_argument("--half", action="store_true", help="weights in half precision")
    return parser


def _training(family: str) -> Callable[[argparse.Namespace], None]:
    return lambda options: _train(options, family)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; see `tokenizer.command.run_command` for the exit code."""

    def command() -> int | None:
        options = _parser().parse_args(arguments)
        return options.run(options)

    return run_command("generative", command)
