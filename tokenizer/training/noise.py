"""Noise on latents, drawn for each item of a batch from a generator of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def item_generators(batch: dict[str, Tensor], generator: torch.Generator) -> list[torch.Generator]:
    """A generator for each item of a batch, by its ``"index"`` in the data of the whole run.

    So what is drawn for an item does not depend on the process that it is in.
    """
    base = int(torch.randint(2**62, (), generator=generator))
    return [torch.Generator().manual_seed(base + i) for i in batch["index"].tolist()]


def item_noise(
    shape: tuple[int, int],
    noise_range: tuple[float, float],
    items: list[torch.Generator],
    device: torch.device,
) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Gaussian noise for each item, and its level ``max(0, U(*noise_range))``, not yet applied."""
    low, high = noise_range
    level = torch.stack([torch.rand((), generator=g) for g in items]) * (high - low) + low
    noise = torch.stack([torch.randn(shape, generator=g) for g in items])
    return noise.to(device), level.clamp(min=0).to(device)


def add_noise(
    latents: Float[Tensor, "B D T"],
    noise_range: tuple[float, float],
    items: list[torch.Generator],
) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Latents under noise of each item's own level, and the levels."""
    shape = (latents.shape[1], latents.shape[2])
    noise, level = item_noise(shape, noise_range, items, latents.device)
    return latents + level[:, None, None] * noise, level
