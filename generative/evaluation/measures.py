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
from torch import nn

from generative.evaluation.embeddings import EmbeddedSet, EmbeddingSpace, embed_rows
from generative.protocol import Row
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


def gaussian_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: LatentTokenizer, generator: torch.Generator
) -> list[Row]:
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
            name: _distances(
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


def like(row: Mapping[str, Any], example: Mapping[str, Any]) -> Row:
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


def _distances(
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


def class_agreement(
    real: EmbeddedSet, made: EmbeddedSet, spaces: Mapping[str, EmbeddingSpace], seed: int = 0
) -> dict[str, Any] | None:
    """Whether a classifier trained on real clips hears the classes that were asked for.

    Args:
        real: Clips with labels; one in four is kept from training, to know the classifier.
        made: Generated clips, with the labels that were asked for.
        spaces: Of `EmbeddingSpace`, for each embedding.
        seed: Of the split.

    Returns:
        ``agreement``, the share of generated clips of the class asked for; ``real_accuracy``, the
        same of the real clips kept from training; ``chance``; the ``confusion`` of generated clips
        (asked for, heard, share). None where there is nothing to compare.
    """
    names = sorted({label for label in real.labels if label is not None})
    asked = {label for label in made.labels if label is not None}
    if len(names) < 2 or not asked & set(names):
        return None
    known = np.array([label in names for label in real.labels])
    wanted = np.array([label in names for label in made.labels])
    x, y = _features(real, spaces)[known], _indices(real, names)[known]
    clips = real.clips[known]
    order = np.random.default_rng(seed).permutation(np.unique(clips))
    kept = np.isin(clips, order[: max(1, len(order) // 4)])
    trial = train_classifier(x[~kept], y[~kept], len(names))
    final = train_classifier(x, y, len(names))
    _, truth, heard = _by_clip(trial, x[kept], y[kept], clips[kept])
    accuracy = float((truth == heard).mean())
    made_x, made_y = _features(made, spaces)[wanted], _indices(made, names)[wanted]
    _, truth, heard = _by_clip(final, made_x, made_y, made.clips[wanted])
    confusion = {
        names[a]: {names[b]: float((heard[truth == a] == b).mean()) for b in range(len(names))}
        for a in np.unique(truth).tolist()
    }
    return {
        "agreement": float((truth == heard).mean()),
        "real_accuracy": accuracy,
        "chance": 1 / len(names),
        "confusion": confusion,
    }


def _features(embedded: EmbeddedSet, spaces: Mapping[str, EmbeddingSpace]) -> np.ndarray:
    return np.concatenate([space(embedded.points[name]) for name, space in spaces.items()], axis=1)


def _indices(embedded: EmbeddedSet, names: Sequence[str]) -> np.ndarray:
    return np.array([names.index(label) if label in names else -1 for label in embedded.labels])


def train_classifier(
    points: Float[np.ndarray, "M E"], classes: np.ndarray, count: int, decay: float = 1e-2
) -> nn.Linear:
    """Multinomial logistic regression, to its optimum: nothing about it is random.

    Args:
        points: Features.
        classes: Class of each, 0 to count - 1; rare ones weigh as much as frequent ones.
        count: Number of classes.
        decay: Half the weight of the squared parameters.
    """
    x, y = torch.from_numpy(points).double(), torch.from_numpy(classes).long()
    model = nn.Linear(x.shape[1], count).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    sizes = torch.bincount(y, minlength=count).clamp(min=1).double()
    weights = sizes.sum() / sizes / count
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y, weight=weights)
        loss = loss + decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return model


@torch.no_grad()
def _by_clip(
    model: nn.Linear, points: np.ndarray, classes: np.ndarray, clips: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips, their classes, and those that are heard in their segments together."""
    scores = model(torch.from_numpy(points).double()).log_softmax(-1).numpy()
    names, first, index = np.unique(clips, return_index=True, return_inverse=True)
    sums = np.zeros((len(names), scores.shape[1]))
    np.add.at(sums, index, scores)
    return names, classes[first], sums.argmax(1)
