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
    """Measures how much the points of a set differ from each other.

    Args:
        points: Of more than 1000 a random 1000 are taken.
        seed: Seed of that choice.

    Returns:
        ``mean_distance`` between two points, and ``vendi``, the Vendi score (Friedman and Dieng,
        2023): the effective number of different points, by a Gaussian kernel whose width is the
        root of the number of dimensions, in which real points have deviation 1 or less.
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
    """Compares generated clips with real ones.

    Args:
        real_rows: Real clips, preferably not from the training data; ``label`` is a row's class.
        generated_rows: Rows of a model's ``generate_rows``, all with codes or all with latents.
        tokenizer: Decodes both.
        generated_labels: Requested class of each generated clip. Default: ``label`` of the rows.
        segment_seconds: Length of the segments that are compared.
        seed: Seed of splits, baseline and classifier.

    Returns:
        ``frechet``: see `frechet_figures`, for each embedding (`generative.evaluation.embeddings`).
        ``diversity`` of real and generated segments. ``classes``: see `class_agreement`, None
        without labels.

    Raises:
        ValueError: If there are fewer than 4 real or 2 generated clips, or real rows lack what the
            generated ones have.
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
    return {
        "clips": {"real": len(real_rows), "generated": len(generated_rows)},
        "segments": {"real": len(real), "generated": len(generated), "seconds": segment_seconds},
        "frechet": {
            name: frechet_figures(
                (
                    space(real.points[name]),
                    space(generated.points[name]),
                    space(gaussian.points[name]),
                ),
                real,
                generated,
                seed,
            )
            for name, space in spaces.items()
        },
        "diversity": {
            name: {
                "real": diversity(space(real.points[name]), seed),
                "generated": diversity(space(generated.points[name]), seed),
            }
            for name, space in spaces.items()
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
