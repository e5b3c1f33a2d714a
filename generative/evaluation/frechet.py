"""Fréchet distances between sets of clips, and the Gaussian baseline beside which they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.evaluation.embeddings import EmbeddedSet
from generative.protocol import TokenRow
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

# Splits of the real clips over which the floor is averaged.
FLOOR_SPLITS = 5


def frechet_distance(one: Float[np.ndarray, "M E"], other: Float[np.ndarray, "N E"]) -> float:
    """Fréchet distance (squared 2-Wasserstein) of the Gaussians fitted to two sets of points.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Heusel et al., 2017), in float64. Its bias
    grows as the sets shrink: compare sets of equal size.

    Raises:
        ValueError: If a set has fewer than two points.
    """
    if min(len(one), len(other)) < 2:
        raise InputError(f"Sets of {len(one)} and {len(other)} points have no covariance.")
    means = one.mean(0) - other.mean(0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # The eigenvalues of S1 S2 are those of this symmetric matrix.
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * cross)


def gaussian_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: LatentTokenizer, generator: torch.Generator
) -> list[TokenRow]:
    """A baseline that a model has to beat: frames drawn from the true Gaussian, independently.

    Args:
        rows: Real rows of latents or of codes; the baseline has their lengths, labels and form.
        tokenizer: Of the rows.
        generator: Draws the frames.

    Returns:
        Rows whose latents have the mean and covariance of the real frames.
    """
    real = [_latents(row, tokenizer) for row in rows]
    frames = torch.cat(real).double()
    mean, covariance = frames.mean(0), torch.cov(frames.T).reshape(frames.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    made = []
    for row, one in zip(rows, real, strict=True):
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        latents = (mean + noise @ root.T).float()
        shared = {k: row[k] for k in ("num_samples", "num_channels", "label") if k in row}
        if row.get("latents") is not None:
            made.append({"latents": latents.numpy()} | shared)
            continue
        n = np.shape(row["codes"])[-1]
        codes = tokenizer.quantize(latents.T[None], n)[0].T.cpu().numpy()
        made.append({"codes": codes} | shared)
    return made


def _latents(row: Mapping[str, Any], tokenizer: LatentTokenizer) -> Float[torch.Tensor, "T D"]:
    """Latents of a row in the tokenizer's own scale; groups of channels one after the other."""
    if row.get("latents") is not None:
        return torch.from_numpy(np.asarray(row["latents"]).astype(np.float32))
    codes = torch.from_numpy(np.asarray(row["codes"]).astype(np.int64))
    return tokenizer.dequantize(codes.T[None])[0].T.cpu()


def frechet_figures(
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    real: EmbeddedSet,
    made: EmbeddedSet,
    seed: int,
) -> dict[str, float]:
    """Distances between real, generated and Gaussian points, whose clips the sets name."""
    rng = np.random.default_rng(seed)
    floors, at_floor = [], []
    for _ in range(FLOOR_SPLITS):
        half, some = _half(real, rng), _half(made, rng, _count(real) // 2)
        first, rest, generated = points[0][half], points[0][~half], points[1][some]
        if min(len(first), len(rest), len(generated)) >= 2:
            floors.append(frechet_distance(first, rest))
            at_floor.append(frechet_distance(generated, rest))
    generated, baseline = (frechet_distance(other, points[0]) for other in points[1:])
    return {
        "generated": generated,
        "gaussian": baseline,
        "gaussian_ratio": baseline / max(generated, 1e-12),
        "floor": float(np.mean(floors)) if floors else float("nan"),
        "generated_at_floor": float(np.mean(at_floor)) if at_floor else float("nan"),
    }


def _count(embedded: EmbeddedSet) -> int:
    return len(np.unique(embedded.clips))


def _half(embedded: EmbeddedSet, rng: np.random.Generator, most: int | None = None) -> np.ndarray:
    """Which segments are of a random half (or so many) of the clips, the same share of each class.

    Segments of a clip stay together, as they resemble each other.
    """
    classes = dict(zip(embedded.clips.tolist(), map(str, embedded.labels), strict=True))
    # Sorted by class, every other clip (or every third, ...) makes a sample with their shares.
    order = sorted(rng.permutation(list(classes)).tolist(), key=lambda clip: classes[clip])
    count = min(len(order) // 2 if most is None else most, len(order))
    places = np.linspace(0, len(order), count, endpoint=False) + rng.integers(2)
    return np.isin(embedded.clips, np.array(order)[places.astype(int) % len(order)])
