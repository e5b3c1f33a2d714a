"""Fréchet distances between sets of clips, and a Gaussian baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.evaluation.embeddings import EmbeddedSet, row_latents
from generative.protocol import TokenRow
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

# Splits of the real clips over which the floor is averaged.
FLOOR_SPLITS = 5


def frechet_distance(one: Float[np.ndarray, "M E"], other: Float[np.ndarray, "N E"]) -> float:
    """Fréchet distance (squared 2-Wasserstein) of the Gaussians fitted to two sets of points.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Heusel et al., 2017), in float64. Small sets
    bias it upwards: compare distances of sets of equal size.
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
    """Draws a baseline: independent Gaussian frames of the mean and covariance of real ones.

    The rows have the lengths, labels and form (latents or codes) of the real ones.
    """
    real = [row_latents(row, tokenizer).flatten(0, 1) for row in rows]
    frames = torch.cat(real).double()
    mean, covariance = frames.mean(0), torch.cov(frames.T).reshape(frames.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    drawn = []
    for row, one in zip(rows, real, strict=True):
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        latents = (mean + noise @ root.T).float()
        shared = {k: row[k] for k in ("num_samples", "num_channels", "label") if k in row}
        if row.get("latents") is not None:
            drawn.append({"latents": latents.numpy()} | shared)
            continue
        n = np.shape(row["codes"])[-1]
        codes = tokenizer.quantize(latents.T[None], n)[0].T.cpu().numpy()
        drawn.append({"codes": codes} | shared)
    return drawn


def frechet_figures(
    points: tuple[np.ndarray, ...], real: EmbeddedSet, generated: EmbeddedSet, seed: int
) -> dict[str, float]:
    """Distances between the points of real, generated and Gaussian clips, in this order.

    The distance of all ``generated`` clips from all real ones, that of the ``gaussian`` baseline,
    and their ratio. From a random half of the real clips, the distance of the other half
    (``floor``) and of as many generated clips (``generated_at_floor``), both means over some
    splits. Compare these two with each other only, as small sets bias distances upwards.
    """
    rng = np.random.default_rng(seed)
    floors, at_floor = [], []
    for _ in range(FLOOR_SPLITS):
        half, some = _half(real, rng), _half(generated, rng, _count(real) // 2)
        first, rest, other = points[0][half], points[0][~half], points[1][some]
        if min(len(first), len(rest), len(other)) >= 2:
            floors.append(frechet_distance(first, rest))
            at_floor.append(frechet_distance(other, rest))
    distance, baseline = (frechet_distance(other, points[0]) for other in points[1:])
    return {
        "generated": distance,
        "gaussian": baseline,
        "gaussian_ratio": baseline / max(distance, 1e-12),
        "floor": float(np.mean(floors)) if floors else float("nan"),
        "generated_at_floor": float(np.mean(at_floor)) if at_floor else float("nan"),
    }


def frechet_of_equal_sets(
    real: Float[np.ndarray, "M E"], sets: Mapping[str, np.ndarray], seed: int
) -> dict[str, float]:
    """Distances of each set of points from one half of the real ones, and of the other half.

    The last is called ``floor``. As small sets bias distances upwards, all have equally many
    points, drawn at random; the distances are means over some such draws.
    """
    count = min(len(real) // 2, *map(len, sets.values()))
    if count < 2:
        raise InputError(f"{len(real)} real points: too few to compare with.")
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in (*sets, "floor")}
    for _ in range(FLOOR_SPLITS):
        order = rng.permutation(len(real))
        half, rest = real[order[:count]], real[order[-count:]]
        drawn["floor"].append(frechet_distance(rest, half))
        for name, points in sets.items():
            chosen = points[rng.permutation(len(points))[:count]]
            drawn[name].append(frechet_distance(chosen, half))
    return {name: float(np.mean(values)) for name, values in drawn.items()}


def _count(embedded: EmbeddedSet) -> int:
    return len(np.unique(embedded.clips))


def _half(embedded: EmbeddedSet, rng: np.random.Generator, most: int | None = None) -> np.ndarray:
    """Which segments belong to a random half (or ``most``) of the clips, stratified by class.

    Segments of a clip stay together, because they resemble each other.
    """
    classes = dict(zip(embedded.clips.tolist(), map(str, embedded.labels), strict=True))
    # Equally spaced clips of an order sorted by class have the same share of each class.
    order = sorted(rng.permutation(list(classes)).tolist(), key=lambda clip: classes[clip])
    count = min(len(order) // 2 if most is None else most, len(order))
    places = np.linspace(0, len(order), count, endpoint=False) + rng.integers(2)
    return np.isin(embedded.clips, np.array(order)[places.astype(int) % len(order)])
