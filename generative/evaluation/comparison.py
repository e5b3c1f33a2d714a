"""Comparison of generated clips with real ones: Fréchet distance, diversity and classes.

Functions take rows of the tokenizer, from language models and diffusion models alike. Real rows are
converted to the form of the generated ones: latents, or codes of as many codebooks. So the figures
measure the model and not the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.evaluation.classifier import class_agreement
from generative.evaluation.embeddings import EmbeddingSpace, embed_rows
from generative.evaluation.frechet import frechet_figures, gaussian_rows
from generative.protocol import TokenRow
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError


def diversity(points: Float[np.ndarray, "M E"], seed: int = 0) -> dict[str, float]:
    """How much at most 1000 random points of a set differ from each other.

    ``mean_distance`` of two points, and ``vendi``, the Vendi score (Friedman and Dieng, 2023): the
    effective number of different points, by a Gaussian kernel whose width is the root of the number
    of dimensions, in which real points have deviation 1 or less.
    """
    rng = np.random.default_rng(seed)
    chosen = points[rng.permutation(len(points))[:1000]]
    squares = np.square(chosen).sum(1)
    squared = (squares[:, None] + squares - 2 * chosen @ chosen.T).clip(min=0)
    n = len(chosen)
    distance = float(np.sqrt(squared).sum() / max(n * (n - 1), 1))
    eigenvalues = np.linalg.eigvalsh(np.exp(-squared / (2 * points.shape[1])) / n)
    positive = eigenvalues[eigenvalues > 1e-12]
    vendi = float(np.exp(-(positive * np.log(positive)).sum()))
    return {"mean_distance": distance, "vendi": vendi}


def evaluate_generations(
    real_rows: Sequence[Mapping[str, Any]],
    generated_rows: Sequence[Mapping[str, Any]],
    tokenizer: LatentTokenizer,
    *,
    generated_labels: Sequence[str | None] | None = None,
    segment_seconds: float | int = 2.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares generated clips with real ones, preferably not from the training data.

    Rows with codes or rows with latents; ``label`` is a row's class, and ``generated_labels`` the
    requested classes where the generated rows hold none. ``seed`` is that of splits, baseline and
    classifier.

    The result has ``frechet`` (see `frechet_figures`) and ``diversity`` of real and generated
    segments for each embedding (`generative.evaluation.embeddings`), and ``classes`` (see
    `class_agreement`), None without labels.
    """
    if len(real_rows) < 4 or len(generated_rows) < 2:
        raise InputError(
            f"{len(real_rows)} real and {len(generated_rows)} generated clips: need 4 and 2."
        )
    if generated_labels is not None:
        pairs = zip(generated_rows, generated_labels, strict=True)
        generated_rows = [{**row, "label": label} for row, label in pairs]
    same_form = [like(row, generated_rows[0]) for row in real_rows]
    generator = torch.Generator().manual_seed(seed)
    real = embed_rows(same_form, tokenizer, segment_seconds)
    generated = embed_rows(generated_rows, tokenizer, segment_seconds)
    baseline = gaussian_rows(same_form, tokenizer, generator)
    gaussian = embed_rows(baseline, tokenizer, segment_seconds)
    spaces = {name: EmbeddingSpace.fit(points) for name, points in real.points.items()}
    points = {
        name: tuple(space(one.points[name]) for one in (real, generated, gaussian))
        for name, space in spaces.items()
    }
    return {
        "clips": {"real": len(real_rows), "generated": len(generated_rows)},
        "segments": {"real": len(real), "generated": len(generated), "seconds": segment_seconds},
        "frechet": {k: frechet_figures(p, real, generated, seed) for k, p in points.items()},
        "diversity": {
            k: {"real": diversity(p[0], seed), "generated": diversity(p[1], seed)}
            for k, p in points.items()
        },
        "classes": class_agreement(real, generated, spaces, seed),
    }


def like(row: Mapping[str, Any], example: Mapping[str, Any]) -> TokenRow:
    """Converts a real row to the form of a generated one: latents, or as many codebooks."""
    column = "latents" if example.get("latents") is not None else "codes"
    if row.get(column) is None:
        raise InputError(f"The generated rows have {column}, a real row has none: {sorted(row)}.")
    shared = {k: row[k] for k in ("num_samples", "num_channels", "label") if k in row}
    values = np.asarray(row[column])
    count = np.shape(example[column])[-1]
    if values.shape[-1] < count:
        raise InputError(
            f"The generated rows have {count} codebooks, a real row {values.shape[-1]}."
        )
    return {column: values[:, :count]} | shared
