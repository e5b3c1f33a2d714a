"""A classifier trained on real clips, and how often it confirms the class of generated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from generative.evaluation.embeddings import EmbeddedSet, EmbeddingSpace


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
