"""The standard deviation of a batch that processes share, for training as if one had all of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def latent_deviation(z: Float[Tensor, "B D T"], *, shared: bool) -> Float[Tensor, ""]:
    """Standard deviation of latents about the mean of each of the D, which may be far from 0.

    If it is ``shared``, all processes have to call it, as for `deviation`.
    """
    # Without a gradient: the sum of squares is smallest at the mean, so the mean passes on none.
    mean = z.detach().mean((0, 2), keepdim=True)
    if shared and _several_processes():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    centred = z - mean
    return deviation(centred) if shared else centred.std()


def deviation(z: Float[Tensor, ...]) -> Float[Tensor, ""]:
    """Standard deviation of all values, of those of the other processes too where there are any.

    As in synchronized batch normalisation: a batch gives the same, and the same gradient, however
    many processes share it. All of them have to call it.
    """
    if not _several_processes():
        return z.std()
    # Differentiable: each process' loss sends its gradient to all of them.
    from torch.distributed.nn.functional import all_reduce

    with torch.no_grad():
        moments = torch.stack([z.sum(), z.new_tensor(float(z.numel()))])
        dist.all_reduce(moments)
        total, count = moments.unbind()
    return (all_reduce((z - total / count).square().sum()) / (count - 1)).sqrt()


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
