"""Noise that is a function of its place: the same for a whole signal, in pieces, on any device.

A counter-based generator, as in Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3":
the number at frame t and bin k is a hash of seed, t and k, so nothing is drawn in an order. The
hash is made of products and remainders of integers below 2^63, which every backend computes alike,
ONNX's too (it has no shifts of signed integers).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The largest prime below 2^21. Cubing permutes its remainders, as p - 1 is no multiple of 3; the
# cube, taken in two steps, stays below 2^42; and remainders are exact in float32.
PRIME = 2_097_143
_FIRST, _SECOND = 1_299_721, 611_953


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the remainders that leaves neighbours far apart."""
    x = x % PRIME
    return (x * x % PRIME * x + _SECOND) % PRIME


def frame_states(frames: Int[Tensor, "*B T"], seed: int = 0) -> Float[Tensor, "*B T 1"]:
    """What `bin_noise` needs to know of each frame, by its number: integers, as float32.

    They are a feature like others, so they can pass through whatever cuts a signal in pieces.
    The numbers repeat after `PRIME` frames, some six hours of 10 ms.
    """
    x = _mixed(frames * _FIRST + seed)
    return _mixed(_mixed(x + 1) + frames)[..., None].float()


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _bin_states(num_bins: int, device: torch.device) -> Int[Tensor, " M"]:
    bins = torch.arange(num_bins, device=device)
    return _mixed(_mixed(bins * _SECOND + 7) + bins)


def bin_noise(states: Float[Tensor, "*B T 1"], num_bins: int) -> Float[Tensor, "*B T M"]:
    """Uniform noise of mean 0 and variance 1 in each bin of frames with these `frame_states`.

    In the time domain, where each sample is a sum over all bins, it is Gaussian.
    """
    x = _mixed(states.long() + _bin_states(num_bins, states.device))
    return (x.float() + (0.5 - PRIME / 2)) * (12**0.5 / PRIME)
