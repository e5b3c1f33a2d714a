"""Network blocks at frame rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then an MLP over channels, with a residual.

    After ConvNeXt (Liu et al. 2022) in the form Vocos uses (Siuzdak 2023), with frames on the
    second axis, so that all but the small convolution is a plain matrix product.

    Args:
        width: Channels.
        expansion: Hidden channels of the MLP over ``width``.
        kernel_size: Frames the convolution sees; odd.
        residual_scale: Initial scale of the residual branch.
    """

    def __init__(self, width: int, expansion: int, kernel_size: int, residual_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(
            width, width, kernel_size, padding=kernel_size // 2, groups=width
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), residual_scale))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Applies the block; frames beyond either end count as zero."""
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        h = self.contract(F.gelu(self.expand(self.norm(h)), approximate="tanh"))
        return x + self.scale * h


class Backbone(nn.Module):
    """Input projection, a stack of `ConvNeXtBlock` and a final norm.

    Args:
        in_features: Features per input frame.
        width: Channels of the blocks.
        depth: Number of blocks.
        expansion: Hidden channels of each MLP over ``width``.
        kernel_size: Frames each block sees; odd.
    """

    def __init__(
        self, in_features: int, width: int, depth: int, expansion: int, kernel_size: int
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        self.project = nn.Linear(in_features, width)
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, expansion, kernel_size, 1 / max(depth, 1)) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.context = depth * (kernel_size // 2)

    def forward(
        self, x: Float[Tensor, "B T F"], shift: Float[Tensor, "B 1 C"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Maps frames to features; ``shift`` is added to every frame before the first block."""
        h = self.norm_in(self.project(x))
        if shift is not None:
            h = h + shift
        for block in self.blocks:
            h = block(h)
        return self.norm_out(h)
