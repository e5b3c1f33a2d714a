"""The gain of a signal: what it is divided by before it is encoded, and multiplied with again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder
from tokenizer.errors import InputError

# Silence has no level to divide by: this is added to every gain (-100 dB).
GAIN_FLOOR = 1e-5


def as_gains(gain: Any, count: int) -> Float32[np.ndarray, " count"]:
    """The gains of ``count`` channels, from a positive number for all or one for each."""
    try:
        values = np.asarray(gain, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"gain={gain!r:.60} is not a number.") from None
    if values.ndim > 1 or values.size not in (1, count):
        raise InputError(f"gain has shape {values.shape}; expected one number, or {count}.")
    if not bool((np.isfinite(values) & (values > 0)).all()):
        raise InputError(f"gain={gain!r:.60} must be positive and finite.")
    return np.broadcast_to(values.reshape(-1), (count,)).copy()


def measured_gain(
    autoencoder: Autoencoder, mean_square: Tensor | float, largest: Tensor | float
) -> float:
    """The gain of audio of this mean square and largest magnitude; 1 where none is needed."""
    if not autoencoder.normalize:
        return 1.0
    peak = autoencoder.peak
    level = float(mean_square) ** 0.5 if peak is None else float(largest) / peak
    return float(torch.tensor(level + GAIN_FLOOR, dtype=torch.float32))


def measured_gains(
    autoencoder: Autoencoder, x: Float[Tensor, "B M N"], lengths: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The same of a batch, on its device; beyond their lengths items are zero."""
    if not autoencoder.normalize:
        return x.new_ones(len(x))
    if autoencoder.peak is None:
        energy = x.double().square().sum((1, 2))
        level = (energy / (lengths * x.shape[1])).sqrt()
    else:
        level = x.abs().amax((1, 2)).double() / autoencoder.peak
    return (level + GAIN_FLOOR).float()
