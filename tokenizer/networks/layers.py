"""Network blocks at frame rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenizer.errors import InputError

# 2 sqrt(2 / pi), and the cubic term of the approximation.
_GELU, _CUBIC = 1.5957691216057308, 0.044715


def _gelu_(x: Tensor) -> Tensor:
    """``gelu(x, approximate="tanh")``, as ``x sigmoid(...)``: on CPUs half the time of torch's."""
    gate = x.square().mul_(_GELU * _CUBIC).add_(_GELU)
    return gate.mul_(x).sigmoid_().mul_(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then an MLP over channels, with a residual.

    After ConvNeXt (Liu et al. 2022) in the form Vocos uses (Siuzdak 2023), with frames on the
    second axis, so that all but the small convolution is a plain matrix product. Of the
    ``kernel_size`` frames that it sees, ``ahead`` follow its own.
    """

    def __init__(
        self, width: int, expansion: int, kernel_size: int, residual_scale: float, ahead: int
    ) -> None:
        super().__init__()
        self.behind, self.ahead = kernel_size - 1 - ahead, ahead
        self.depthwise = nn.Conv1d(width, width, kernel_size, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), residual_scale))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Applies the block; frames beyond either end count as zero."""
        return x + self.scale * self.branch(x)

    def branch(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """What the block adds to its input, not yet scaled."""
        padded = F.pad(x.transpose(1, 2), (self.behind, self.ahead))
        h = self.norm(self.depthwise(padded).transpose(1, 2))
        return self.contract(F.gelu(self.expand(h), approximate="tanh"))

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """The block as a function of a window ``[behind + T + ahead, C]``; for inference only."""
        # One product for each tap of the kernel, with frames first: a third of the time of torch's
        # convolution, which needs channels first.
        taps = self.depthwise.weight.detach()[:, 0].T.contiguous()

        def apply(window: Tensor) -> Tensor:
            frames = len(window) - len(taps) + 1
            assert self.depthwise.bias is not None
            h = torch.addcmul(self.depthwise.bias, window[:frames], taps[0])
            for k in range(1, len(taps)):
                h.addcmul_(window[k : k + frames], taps[k])
            x = window[self.behind : self.behind + frames]
            h = self.contract(_gelu_(self.expand(self.norm(h)).float()))
            return torch.addcmul(x, self.scale, h.to(x.dtype))

        return apply


class Backbone(nn.Module):
    """Input projection, a stack of `ConvNeXtBlock` and a final norm.

    Its owner calls `enter`, `blocks` and `norm_out` in turn, on a whole signal or block by block.

    Args:
        in_features: Features per input frame.
        width: Channels of the blocks.
        depth: Number of blocks.
        expansion: Hidden channels of each MLP over ``width``.
        kernel_size: Frames each block sees; odd.
        lookahead: Frames that all blocks together see ahead; the first blocks use them up. None:
            each block sees as many ahead as behind.

    Attributes:
        behind, ahead: Frames before and after its own that a frame of the result depends on.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        expansion: int,
        kernel_size: int,
        lookahead: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {kernel_size}.")
        half = kernel_size // 2
        total = depth * half if lookahead is None else min(lookahead, depth * half)
        each = [min(half, max(0, total - half * i)) for i in range(depth)]
        self.width, self.ahead = width, total
        self.behind = depth * (kernel_size - 1) - total
        self.project = nn.Linear(in_features, width)
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, expansion, kernel_size, 1 / depth, ahead) for ahead in each)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6)

    def enter(
        self, x: Float[Tensor, "*B T F"], shift: Float[Tensor, "... C"] | None = None
    ) -> Float[Tensor, "*B T C"]:
        """The first block's input: projected frames, plus ``shift`` where there is one."""
        h = self.norm_in(self.project(x))
        return h if shift is None else h + shift

    def masked(
        self, h: Float[Tensor, "P T C"], inside: Bool[Tensor, "P T"]
    ) -> Float[Tensor, "P T C"]:
        """All blocks, over rows of which some are of no signal: each block sees zeros there."""
        mask, zero = inside[..., None], h.new_zeros(())
        for block in self.each_block():
            # Chosen, not multiplied: NaN times zero would pass from one signal to the next. One
            # kernel for scale and residual.
            seen = torch.where(mask, h, zero)
            h = torch.addcmul(h, block.scale, block.branch(seen).to(h.dtype))
        return h

    @property
    def gap(self) -> int:
        """Rows of zeros that keep two signals apart in `masked`."""
        return max([1, *(max(block.behind, block.ahead) for block in self.each_block())])

    def each_block(self) -> list[ConvNeXtBlock]:
        """The blocks, in order."""
        return [block for block in self.blocks if isinstance(block, ConvNeXtBlock)]


@torch.no_grad()
def copy_common(source: nn.Module, target: nn.Module) -> None:
    """Copies the first rows and columns that both modules' tensors have; others become zero."""
    values = source.state_dict()
    for name, tensor in target.state_dict().items():
        both = zip(tensor.shape, values[name].shape, strict=True)
        corner = tuple(slice(min(sizes)) for sizes in both)
        tensor.zero_()
        tensor[corner] = values[name][corner]
