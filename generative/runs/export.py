"""Export of a trained model and its tokenizer as one self-contained folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from generative.runs.loading import RUN_FILE, load_run
from tokenizer.errors import InputError
from tokenizer.saving import write_json


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    half: bool = False,
) -> None:
    """Writes ``model/``, ``tokenizer/`` and ``run.json``; `load_run` reads it like a run.

    The export of a diffusion model is also a `diffusers` pipeline:
    ``LatentDiffusionPipeline.from_pretrained`` loads it.

    Args:
        run: A finished run.
        out: Folder to write.
        tokenizer: Folder or hub id. Default: the run's.
        half: Whether to store matrices in float16, for half the size. They are rounded; the model
            still computes in float32.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If ``out`` is the run itself.
    """
    root = Path(out)
    if root.resolve() == Path(run).resolve():
        raise InputError(f"{out} is the run itself: name another folder.")
    model, tok, info = load_run(run, tokenizer)
    root.mkdir(parents=True, exist_ok=True)
    if half:
        _round(model)
    if info["column"] == "latents":
        from generative.diffusion.latent_diffusion import make_scheduler
        from generative.diffusion.pipeline import LatentDiffusionPipeline

        scheduler = make_scheduler(shift=model.config["shift"])
        LatentDiffusionPipeline(model, scheduler, tok).save_pretrained(root)
    else:
        model.save_pretrained(root / "model")
        tok.save_pretrained(root / "tokenizer")
    card = Path(run) / "model" / "README.md"
    if card.exists():
        shutil.copyfile(card, root / "README.md")
    # Paths of the machine that trained it are left out.
    described = info | {"tokenizer": None, "data": Path(info["data"]).name}
    write_json(root / RUN_FILE, described)


def _round(model: Any) -> None:
    """Rounds matrices to float16; norms, biases and statistics stay in float32."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.float16)
