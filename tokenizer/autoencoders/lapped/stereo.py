"""Stereo in the bundled family: mid and side, which share latents.

A row of a stereo model holds M samples or coefficients of mid, and behind them M of side. What
depends on neighbouring coefficients works on each channel by itself (`each_channel`); linear paths,
networks and noise take a row as a whole. A mono model has one channel, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.networks.spectral import lapped_blocks, mdct_blocks


def mid_and_side(x: Float[Tensor, "*B C N"]) -> Float[Tensor, "*B C N"]:
    """Left and right to mid and side, or back: the matrix is orthonormal and its own inverse."""
    if x.shape[-2] == 1:
        return x
    first, second = x.unbind(-2)
    return torch.stack([first + second, first - second], dim=-2) * 0.5**0.5


def to_rows(blocks: Float[Tensor, "*B C T M"]) -> Float[Tensor, "*B T R"]:
    """Blocks of each channel to rows of ``R = C * M`` numbers."""
    return blocks.transpose(-3, -2).flatten(-2)


def to_channels(rows: Float[Tensor, "*B T R"], num_channels: int) -> Float[Tensor, "*B C N"]:
    """The inverse of `to_rows`, with the blocks of a channel joined: ``N = T * M``."""
    return rows.unflatten(-1, (num_channels, -1)).transpose(-3, -2).flatten(-2)


def each_channel(
    function: Callable[[Tensor], Tensor], rows: Float[Tensor, "*B T R"], size: int
) -> Float[Tensor, "*B T2 R2"]:
    """Applies a function of rows of one channel, ``size`` numbers each, to every channel."""
    return torch.cat([function(part) for part in rows.split(size, dim=-1)], dim=-1)


def lapped_rows(audio: Float[Tensor, "*B C N"], hop_length: int) -> Float[Tensor, "*B T R"]:
    """Left and right, or mono, as rows of `tokenizer.networks.spectral.lapped_blocks`."""
    return to_rows(lapped_blocks(mid_and_side(audio), hop_length))


def coefficients(audio: Float[Tensor, "*B C N"], hop_length: int) -> Float[Tensor, "*B T R"]:
    """The MDCT of left and right, or mono, as rows."""
    return each_channel(mdct_blocks, lapped_rows(audio, hop_length), hop_length)
