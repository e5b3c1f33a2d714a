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
    """A generator for the page from a trained run, and the run's tokenizer; see `load_run`."""
    model, tok, info = load_run(run, tokenizer, device)

    def make(settings: Any) -> tuple[np.ndarray, int]:
        request = make_request(
            tok,
            settings.seconds,
            labels=[settings.label],
            captions=[settings.caption] if settings.caption else (),
            prompt=settings.prompt,
            n_codebooks=info.get("n_codebooks"),
            guidance_scale=settings.guidance,
        )
        clip = next(generate(model, tok, request, seed=settings.seed))
        return clip.audio, tok.sampling_rate

    has_text = model.conditioner.text is not None
    return AppGenerator(str(run), make, tuple(model.labels), takes_captions=has_text), tok


def app_parts(
    runs: Sequence[str | Path], tokenizer: str | Path | None = None, device: str = "cpu"
) -> tuple[dict[str, LatentTokenizer], list[AppGenerator]]:
    """The arguments of `tokenizer.launch_app`: the runs' distinct tokenizers, and the runs."""
    models: dict[str, LatentTokenizer] = {}
    generators = []
    for run in runs:
        generator, tok = run_generator(run, tokenizer, device)
        generators.append(generator)
        if tok.fingerprint not in {model.fingerprint for model in models.values()}:
            models[f"tokenizer of {run}"] = tok
    return models, generators
