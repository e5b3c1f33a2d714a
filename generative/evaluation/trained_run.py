"""Evaluation of a trained run on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from generative.evaluation.comparison import evaluate_generations
from generative.protocol import DiffusionSampling
from generative.runs.generation import generate_rows, make_request
from generative.runs.loading import load_run
from generative.runs.prepared_data import load_prepared
from tokenizer.errors import InputError

# Length of the segments of clips that are compared.
SEGMENT_SECONDS = 2.0


def evaluate_run(
    run: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    clips: int = 64,
    seconds: float | int = 5.0,
    guidance_scale: float | int = 2.0,
    steps: int = 25,
    seed: int = 0,
    held_out: float = 0.05,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Generates clips of the classes of held-out rows, and compares them with these rows.

    The run, or an export, and the tokenizer (by default the run's) are loaded by `load_run`;
    ``folder`` and ``held_out`` are those of the training. ``clips`` of ``seconds`` each are
    generated, whose classes are those of the held-out rows, in turn. ``steps`` are the evaluations
    of a diffusion model.

    Returns:
        The figures of `evaluate_generations` and, under ``bits``, for language models those of
        `language_model_bits`.

    Raises:
        FileNotFoundError: If there is no such run or dataset.
        ValueError: If there are too few clips to compare, or the device does not exist.
    """
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative.")
    model, tok, info = load_run(run, tokenizer, device)
    has_text = model.conditioner.text is not None
    data = load_prepared(folder, info["column"], held_out, captions=has_text)
    real = [row | {"label": row.get("label")} for row in data.held_out]
    order = np.random.default_rng(seed).permutation(len(real))
    labels = [real[order[i % len(real)]]["label"] for i in range(clips)]
    labels = [label if label in model.labels else None for label in labels]
    request = make_request(
        tok,
        seconds,
        labels=labels,
        n_codebooks=info.get("n_codebooks"),
        guidance_scale=guidance_scale,
        diffusion=DiffusionSampling(steps),
    )
    rows = generate_rows(model, request, seed=seed)
    rows = tqdm(rows, total=clips, disable=not progress, unit="clip")
    generated = [row for row, _, _ in rows]
    result: dict[str, Any] = {
        "run": Path(run).name,
        "family": info["family"],
        "seconds": seconds,
        "guidance": guidance_scale,
        "seed": seed,
    }
    result |= evaluate_generations(
        real,
        generated,
        tok,
        generated_labels=labels,
        segment_seconds=min(seconds, SEGMENT_SECONDS),
        seed=seed,
    )
    if info["column"] == "codes":
        from generative.evaluation.code_bits import language_model_bits

        result["bits"] = language_model_bits(
            model,
            data.train,
            real,
            frame_rate=tok.frame_rate,
            joint_channels=tok.autoencoder.num_channels,
            progress=progress,
        )
    return result
