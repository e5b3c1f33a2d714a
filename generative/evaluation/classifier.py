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
    real: EmbeddedSet, generated: EmbeddedSet, spaces: Mapping[str, EmbeddingSpace], seed: int = 0
) -> dict[str, Any] | None:
    """Classifies generated clips by a classifier trained on real clips.

    One real clip in four tests the classifier. ``agreement`` is the share of generated clips that
    are classified as requested; ``real_accuracy`` the same of the real test clips; ``confusion``
    the shares of generated clips by requested and found class. None without two real classes, or
    without generated clips of one.
    """
    names = sorted({label for label in real.labels if label is not None})
    if len(names) < 2 or not set(generated.labels) & set(names):
        return None
    x, y, clips = _labelled(real, spaces, names)
    order = np.random.default_rng(seed).permutation(np.unique(clips))
    test = np.isin(clips, order[: max(1, len(order) // 4)])
    trial = train_classifier(x[~test], y[~test], len(names))
    truth, classified = _by_clip(trial, x[test], y[test], clips[test])
    accuracy = float((truth == classified).mean())
    final = train_classifier(x, y, len(names))
    truth, classified = _by_clip(final, *_labelled(generated, spaces, names))
    confusion = {
        names[a]: {names[b]: float((classified[truth == a] == b).mean()) for b in range(len(names))}
        for a in np.unique(truth).tolist()
    }
    return {
        "agreement": float((truth == classified).mean()),
        "real_accuracy": accuracy,
        "chance": 1 / len(names),
        "confusion": confusion,
    }


def _labelled(
    embedded: EmbeddedSet, spaces: Mapping[str, EmbeddingSpace], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes and clips of the segments whose label is one of the names."""
    spanned = [space(embedded.points[name]) for name, space in spaces.items()]
    classes = np.array([names.index(name) if name in names else -1 for name in embedded.labels])
    chosen = classes >= 0
    return np.concatenate(spanned, axis=1)[chosen], classes[chosen], embedded.clips[chosen]


def train_classifier(
    points: Float[np.ndarray, "M E"], classes: np.ndarray, count: int, decay: float = 1e-2
) -> nn.Linear:
    """Fits a multinomial logistic regression to its optimum; nothing about it is random.

    All classes have equal weight in total; ``decay`` is half the weight of the squared parameters.
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
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each clip, and the class found from all of its segments together."""
    scores = model(torch.from_numpy(points).double()).log_softmax(-1).numpy()
    _, first, index = np.unique(clips, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), scores.shape[1]))
    np.add.at(sums, index, scores)
    return classes[first], sums.argmax(1)
