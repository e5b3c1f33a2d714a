"""The commands ``train-lm`` and ``train-diffusion``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from generative.cli.options import add, add_held_out, add_tokenizer
from tokenizer.command import add_fields, in_run_folder, take

_SHARED = {
    "width": (384, "width of the hidden states, an even multiple of --heads"),
    "heads": (6, "attention heads"),
    "text_encoder": (
        None,
        "transformers text encoder (name or folder) for captions; default: none",
    ),
}
# Options of each family of models: the default and the meaning.
MODEL_OPTIONS: dict[str, dict[str, tuple[Any, str]]] = {
    "lm": {
        "pattern": ("delay", "order of the codes: delay, parallel, flatten, coarse_first, grouped"),
        "group_frames": (2, "frames that the grouped pattern predicts in a step"),
        "depth": (6, "layers"),
        **_SHARED,
    },
    "diffusion": {
        "depth": (8, "layers"),
        "patch_frames": (2, "latent frames that make one token of the transformer"),
        **_SHARED,
    },
}


def register(commands: Any) -> None:
    """Adds the commands of this file."""
    from generative.training.training_config import TrainingConfig

    for name, family, what in (
        ("train-lm", "lm", "a language model on the codes"),
        ("train-diffusion", "diffusion", "a diffusion model on the latents"),
    ):
        p = commands.add_parser(name, help=f"train {what} of a prepared dataset")
        p.set_defaults(run=in_run_folder(partial(_train, family)))
        text = "dataset of `python -m datasets_scripts prepare`: a folder or an fsspec address"
        p.add_argument("data", help=text)
        p.add_argument(
            "--out", type=Path, required=True, help="folder of the run; an unfinished one resumes"
        )
        add_tokenizer(p, "the bundled one")
        add_held_out(p)
        group = p.add_argument_group("model")
        if family == "lm":
            text = "number of codebooks to learn, the first ones; default: all"
            add(group, "--codebooks", "N", None, text, type=int)
        else:
            text = "learn all latents; default: only those that codes stand for"
            group.add_argument("--detail", action="store_true", help=text)
        for key, (default, text) in MODEL_OPTIONS[family].items():
            metavar = "N" if isinstance(default, int) else "NAME"
            add(group, "--" + key.replace("_", "-"), metavar, default, text)
        add_fields(p, TrainingConfig, title="training")


def _train(family: str, options: argparse.Namespace) -> None:
    from generative.runs.families import train_diffusion, train_language_model
    from generative.runs.prepared_data import training_splits
    from generative.training.training_config import TrainingConfig

    shared: dict[str, Any] = {
        "tokenizer": options.tokenizer,
        "held_out": options.held_out,
        "progress": sys.stderr.isatty(),
        **{name: getattr(options, name) for name in MODEL_OPTIONS[family]},
    }
    if shared.get("pattern") != "grouped":
        shared.pop("group_frames", None)  # Runs of earlier versions, which resume, have none.
    config = take(TrainingConfig, options)
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
