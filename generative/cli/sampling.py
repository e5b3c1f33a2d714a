"""The commands that generate or pass a model on: ``sample``, ``app``, ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from generative.cli.options import (
    BUNDLED,
    RUN_HELP,
    add,
    add_clips,
    add_device,
    add_repeated,
    add_run,
    add_tokenizer,
)
from tokenizer.errors import InputError


def register(commands: Any) -> None:
    """Adds the commands of this file."""
    _register_sample(commands)

    p = commands.add_parser("app", help="listen in a browser: code files, and generate")
    p.set_defaults(run=_app)
    p.add_argument(
        "run_folders",
        metavar="RUN",
        nargs="*",
        default=BUNDLED,
        help=f"{RUN_HELP}; default: both models of the package",
    )
    add_tokenizer(p, "the run's")
    p.add_argument("--host", default="127.0.0.1", help="address; default: only this machine")
    p.add_argument("--port", type=int, help="port to serve at; default: the first free from 7860")
    p.add_argument("--browser", action="store_true", help="open the page in the browser")
    add_device(p)

    p = commands.add_parser("export", help="write a run and its tokenizer as one folder")
    p.set_defaults(run=_export)
    add_run(p)
    p.add_argument("out", type=Path, help="folder to write")
    p.add_argument("--half", action="store_true", help="store weights in half precision (float16)")
    text = "name the tokenizer, a bundled one or one on the hub, instead of writing it too"
    p.add_argument("--no-tokenizer", action="store_true", help=text)


def _register_sample(commands: Any) -> None:
    p = commands.add_parser("sample", help="generate clips")
    p.set_defaults(run=_sample)
    add_run(p, default="lm")
    p.add_argument("--out", type=Path, required=True, help="folder for WAV, PNG, samples.json")
    text = "class; may be repeated; all: every class; default: no class"
    add_repeated(p, "--label", text)
    add_repeated(p, "--caption", "text; may be repeated; default: no text")
    add(p, "--count", "N", 1, "clips of each label")
    p.add_argument("--prompt", type=Path, help="audio file that the clips continue; default: none")
    add_clips(p)
    add(p, "--batch-size", "N", 8, "clips generated together")
    p.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write spectrograms; default: yes",
    )
    group = p.add_argument_group("language models")
    add(group, "--temperature", "X", 1.0, "divides the logits; 0 takes the likeliest code")
    add(group, "--top-k", "N", None, "draw from the N likeliest codes; default: all", type=int)
    text = "draw from the likeliest codes of total probability P, 0 to 1; default: all"
    add(group, "--top-p", "P", None, text, type=float)
    text = "let the model end clips before --seconds; default: no"
    group.add_argument("--stop", action="store_true", help=text)
    group = p.add_argument_group("diffusion models")
    add(group, "--steps", "N", 25, "evaluations of the model")
    text = "integrator from noise to latents"
    add(group, "--solver", None, "euler", text, choices=("euler", "dpm++"))
    text = "seconds of --prompt that stay, e.g. 0-2 4-6, the rest is filled in; default: all of it"
    group.add_argument("--keep", nargs="+", type=_range, metavar="FROM-TO", default=[], help=text)
    text = "round the latents to codes of N codebooks; default: no rounding"
    add(group, "--snap", "N", None, text, type=int)


def _range(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    return float(first), float(last)


def _sample(options: argparse.Namespace) -> None:
    from generative.protocol import CodeSampling, DiffusionSampling
    from generative.runs.generation import generate, make_request, save_clips
    from generative.runs.loading import load_run

    model, tokenizer, info = load_run(options.run_folder, options.tokenizer, options.device)
    is_lm = info["column"] == "codes"
    if options.snap is not None and is_lm:
        raise InputError("--snap is for diffusion; a language model's codes are codes already.")
    if options.keep and (is_lm or options.prompt is None):
        raise InputError("--keep is for a diffusion model and a --prompt, of which parts stay.")
    conditions = _conditions(options, tuple(info["labels"]))
    request = make_request(
        tokenizer,
        options.seconds,
        labels=[label for label, _ in conditions],
        captions=[caption for _, caption in conditions] if options.caption else (),
        prompt=options.prompt,
        keep_seconds=options.keep,
        n_codebooks=info.get("n_codebooks"),
        guidance_scale=options.guidance,
        codes=CodeSampling(options.temperature, options.top_k, options.top_p, stop=options.stop),
        diffusion=DiffusionSampling(options.steps, options.solver),
    )
    how = {"seed": options.seed, "snap_codebooks": options.snap, "batch_size": options.batch_size}
    clips = generate(model, tokenizer, request, **how)
    described = ["seconds", "seed", "guidance", "prompt", "snap"]
    described += ["temperature", "top_k", "top_p", "stop"] if is_lm else ["steps", "solver", "keep"]
    values = {name: getattr(options, name) for name in described}
    values["prompt"] = None if options.prompt is None else str(options.prompt)
    description = {"run": str(options.run_folder), "family": info["family"], **values}
    entries = save_clips(
        clips, options.out, tokenizer.sampling_rate, description, pictures=options.pictures
    )
    print(f"{options.out}: {len(entries)} clips of {options.seconds:g} s")


def _conditions(
    options: argparse.Namespace, classes: tuple[str, ...]
) -> list[tuple[str | None, str | None]]:
    """Label and caption of each clip: ``count`` of every requested label and caption."""
    labels: list[str | None] = list(options.label) or [None]
    if options.label == ["all"]:
        labels = list(classes) or [None]
    captions: list[str | None] = list(options.caption) or [None]
    return [(label, text) for label in labels for text in captions for _ in range(options.count)]


def _app(options: argparse.Namespace) -> None:
    from generative.runs.app import app_parts
    from tokenizer import launch_app

    models, generators = app_parts(options.run_folders, options.tokenizer, options.device)
    server = {"host": options.host, "port": options.port, "open_browser": options.browser}
    app = launch_app(models, generators, **server)
    print(f"Open {app.address} in a browser. Ctrl-C ends it.", flush=True)
    app.wait()


def _export(options: argparse.Namespace) -> None:
    from generative.runs.loading import export_run

    export_run(
        options.run_folder,
        options.out,
        tokenizer=options.tokenizer,
        half=options.half,
        include_tokenizer=not options.no_tokenizer,
    )
    print(options.out)
