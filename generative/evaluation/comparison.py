"""How good are generations? Distances between sets of clips, diversity, and classes.

Functions take rows of the tokenizer, so language models and diffusion models are judged alike.
Real rows are compared in the form of the generated ones: as codes of as many codebooks, or as
latents. So what is measured is the model, not the tokenizer.
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
    """How different the points of a set are from each other.

    Args:
        points: More than 1000 are thinned out.
        seed: Of that.

    Returns:
        ``mean_distance`` between two points, and ``vendi``, the Vendi score (Friedman and Dieng,
        2023): the effective number of different points, by a Gaussian kernel whose width is the
        root of the number of dimensions (in which real points have deviation 1 or less).
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
        real_rows: Real clips, best not those trained on; ``label`` in a row is its class.
        generated_rows: Rows of a model's ``generate_rows``: all with codes, or all with latents.
        tokenizer: Of both.
        generated_labels: Class that each generated clip was asked for. Default: the rows' own.
        segment_seconds: Length of the segments that are compared.
        seed: Of splits, baseline and classifier.

    Returns:
        ``frechet``: for each embedding (`generative.evaluation.embeddings`) the distance of all
        ``generated``
        clips from all real ones, that of the ``gaussian`` baseline, and their ratio; and from one
        half of the real clips the distances of the other half (``floor``) and of as many generated
        clips (``generated_at_floor``), means over some splits: compare these two with each other
        only, as distances between smaller sets are larger. ``diversity`` of real and generated
        segments. ``classes``: see `class_agreement`, None without labels.

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
    alike = [like(row, generated_rows[0]) for row in real_rows]
    generator = torch.Generator().manual_seed(seed)
    real = embed_rows(alike, tokenizer, segment_seconds)
    made = embed_rows(generated_rows, tokenizer, segment_seconds)
    gaussian = embed_rows(gaussian_rows(alike, tokenizer, generator), tokenizer, segment_seconds)
    spaces = {name: EmbeddingSpace.fit(points) for name, points in real.points.items()}
    return {
        "clips": {"real": len(real_rows), "generated": len(generated_rows)},
        "segments": {"real": len(real), "generated": len(made), "seconds": segment_seconds},
        "frechet": {
            name: frechet_figures(
                (
                    space(real.points[name]),
                    space(made.points[name]),
                    space(gaussian.points[name]),
                ),
                real,
                made,
                seed,
            )
            for name, space in spaces.items()
        },
        "diversity": {
            name: {
                "real": diversity(space(real.points[name]), seed),
                "generated": diversity(space(made.points[name]), seed),
            }
            for name, space in spaces.items()
        },
        "classes": class_agreement(real, made, spaces, seed),
    }


def like(row: Mapping[str, Any], example: Mapping[str, Any]) -> TokenRow:
    """A real row in the form of a generated one: latents, or as many codebooks."""
    column = "latents" if example.get("latents") is not None else "codes"
    if row.get(column) is None:
        raise InputError(f"The generated rows have {column}, a real row has none: {sorted(row)}.")
    shared = {k: row[k] for k in ("num_samples", "num_channels", "label") if k in row}
    values = np.asarray(row[column])
    wanted = np.shape(example[column])[-1]
    if values.shape[-1] < wanted:
        raise InputError(
            f"The generated rows have {wanted} codebooks, a real row {values.shape[-1]}."
        )
    return {column: values[:, :wanted]} | shared
