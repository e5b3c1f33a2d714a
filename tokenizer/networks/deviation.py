"""The standard deviation of a batch that processes share, for training as if one had all of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's loss sends its gradient to all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def deviation(z: Float[Tensor, ...]) -> Float[Tensor, ""]:
    """Standard deviation of all values, of those of the other processes too where there are any.

    As in synchronized batch normalisation: a batch gives the same, and the same gradient, however
    many processes share it. All of them have to call it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return z.std()
    with torch.no_grad():
        moments = torch.stack([z.sum(), z.new_tensor(float(z.numel()))])
        dist.all_reduce(moments)
        total, count = moments.unbind()
    squares = (z - total / count).square().sum()
    # Wrongly typed by torch.
    summed: Tensor = _Sum.apply(squares)  # pyright: ignore[reportAssignmentType]
    return (summed / (count - 1)).sqrt()
