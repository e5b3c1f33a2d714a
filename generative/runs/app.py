"""`python -m generative app`: the page of the tokenizer's app, with trained runs that generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generative.runs.generation import generate, make_request
from generative.runs.loading import load_run
from tokenizer import AppGenerator, LatentTokenizer


def run_generator(
    run: str | Path, tokenizer: str | Path | None = None, device: str = "cpu"
) -> tuple[AppGenerator, LatentTokenizer]:
    """A trained run as something that the page generates with, and the run's tokenizer.

    Args:
        run: Its folder.
        tokenizer: Folder or hub id. Default: the one that the run was trained with.
        device: Where to compute.

    Raises:
        FileNotFoundError: If there is no such run, or it is not finished.
        ValueError: If the tokenizer is another one than the run's, or there is no such device.
    """
    model, found, info = load_run(run, tokenizer, device)

    def make(wish: Any) -> tuple[np.ndarray, int]:
        request = make_request(
            found,
            wish.seconds,
            labels=[wish.label],
            captions=[wish.caption] if wish.caption else (),
            prompt=wish.prompt,
            n_codebooks=info.get("n_codebooks"),
            guidance_scale=wish.guidance,
        )
        clip = next(generate(model, found, request, seed=wish.seed))
        return clip.audio, found.sampling_rate

    texts = model.conditioner.text is not None
    return AppGenerator(str(run), make, tuple(model.labels), takes_captions=texts), found


def app_parts(
    runs: Sequence[str | Path], tokenizer: str | Path | None = None, device: str = "cpu"
) -> tuple[dict[str, LatentTokenizer], list[AppGenerator]]:
    """What `tokenizer.launch_app` takes: the runs' tokenizers, each once, and the runs."""
    models: dict[str, LatentTokenizer] = {}
    generators = []
    for run in runs:
        generator, found = run_generator(run, tokenizer, device)
        generators.append(generator)
        if found.fingerprint not in {model.fingerprint for model in models.values()}:
            models[f"tokenizer of {run}"] = found
    return models, generators
