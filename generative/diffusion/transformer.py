"""A transformer over latent frames that predicts the velocity of flow matching.

The design is that of DiT (Peebles & Xie, 2023) in one dimension: adaptive layer norms whose gates
start at zero, shared by all blocks up to a table of each (PixArt-alpha, Chen et al., 2023); rotary
positions (Su et al., 2021), normalised queries and keys, gated feed-forward networks. Conditions
enter twice: their mean through the norms, and one by one as tokens ahead of the frames.

Inputs are scaled to deviation 1 at every noise level, and the network predicts the residual of the
best linear estimate of the velocity, also at deviation 1 (preconditioning, Karras et al., 2022,
section 5). So the noise need not pass through a width that barely exceeds the values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.errors import InputError

# Schedulers of `diffusers` count timesteps in thousandths of sigma.
TRAIN_TIMESTEPS = 1000
# Frequencies of the embedded timestep.
TIME_CHANNELS = 256
# Shift, scale and gate, for attention and for the feed-forward network.
MODULATIONS = 6


def rotary(positions: Float[Tensor, " S"], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[S, head_dim / 2]`` of rotary positions.

    They are computed in every pass: a persistent buffer would be part of the checkpoint, and one
    that is not persistent is uninitialised after loading.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions[:, None] * 10_000.0**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B H S E"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B H S E"]:
    """Rotates pairs of channels by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift`` with ``[B, W]`` factors for ``[B, S, W]`` values."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and a gated feed-forward network, both modulated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, head_dim = heads, width // heads
        # Gated networks have three matrices: two thirds of the usual four widths.
        hidden = 64 * round(width * 8 / 3 / 64) or 64
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.LayerNorm(width, elementwise_affine=False)
        self.feed_in = nn.Linear(width, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, width, bias=False)
        self.table = nn.Parameter(torch.zeros(MODULATIONS, width))

    def forward(
        self,
        x: Float[Tensor, "B S W"],
        modulation: Float[Tensor, "B 6 W"],
        angles: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B S W"]:
        """Applies both with residual connections."""
        parts = (modulation + self.table).unbind(dim=1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts
        h = modulate(self.norm_attention(x), shift_a, scale_a)
        x = x + gate_a[:, None] * self._attend(h, angles, attention_mask)
        h = modulate(self.norm_feed(x), shift_f, scale_f)
        values, gates = self.feed_in(h).chunk(2, dim=-1)
        return x + gate_f[:, None] * self.feed_out(values * functional.silu(gates))

    def _attend(
        self, x: Tensor, angles: tuple[Tensor, Tensor], attention_mask: Tensor | None
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # In float32 also where the projection returns half precision.
        q, k = (
            rotate(functional.rms_norm(x.float(), x.shape[-1:], n.weight.float(), n.eps), *angles)
            for x, n in ((q, self.norm_q), (k, self.norm_k))
        )
        out = functional.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, attn_mask=attention_mask
        )
        return self.out(out.transpose(1, 2).reshape(batch, length, -1))


@dataclass
class VelocityOutput(BaseOutput):
    """What a `DiffusionTransformer` returns.

    Attributes:
        sample: The velocity ``[B, T, D]``, by the name that models of `diffusers` have for it.
    """

    sample: Float[Tensor, "B T D"]


class DiffusionTransformer(ModelMixin, ConfigMixin):
    """Predicts velocities of noisy latents, given conditions as tokens.

    ``width`` is an even multiple of ``heads``. ``patch_frames`` neighbouring frames make one token:
    more is faster and coarser.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        patch_frames: int = 2,
        condition_width: int = 384,
    ) -> None:
        super().__init__()
        if min(latent_dim, width, depth, heads, patch_frames, condition_width) < 1:
            raise InputError("Every size of a diffusion transformer must be at least 1.")
        if width % (2 * heads):
            raise InputError(f"width={width} must be an even multiple of heads={heads}.")
        self.patch_frames, self.head_dim = patch_frames, width // heads
        self.patch_in = nn.Linear(latent_dim * patch_frames, width)
        self.condition_in = nn.Linear(condition_width, width)
        self.time = TimestepEmbedding(TIME_CHANNELS, width)
        self.modulation = nn.Linear(width, MODULATIONS * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, latent_dim * patch_frames)
        # Blocks start as the identity, and the first prediction is zero.
        for layer in (self.modulation, self.modulation_out, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        latents: Float[Tensor, "B T D"],
        timestep: Float[Tensor, " B"],
        condition: Float[Tensor, "B S C"],
        condition_mask: Bool[Tensor, "B S"],
        frame_mask: Bool[Tensor, "B T"] | None = None,
        return_dict: bool = True,
    ) -> VelocityOutput | tuple[Float[Tensor, "B T D"]]:
        """Predicts ``noise - data`` from noisy, normalised latents, in their precision.

        ``timestep`` is 1000 times sigma, the noise level: 0 is data, 1000 is noise. Masks are False
        for padding, whose values have no effect and whose predictions are arbitrary; each item has
        at least one condition. Without ``return_dict`` it returns a tuple of the velocity alone.
        """
        batch, frames, dim = latents.shape
        if frame_mask is not None:
            latents = latents * frame_mask[..., None]
        share = timestep.float()[:, None, None] / TRAIN_TIMESTEPS
        deviation = (share.square() + (1 - share).square()).sqrt()
        missing = -frames % self.patch_frames
        patches = functional.pad(latents / deviation, (0, 0, 0, missing)).view(
            batch, -1, self.patch_frames * dim
        )
        dtype = self.patch_in.weight.dtype
        tokens = self.condition_in(condition.to(dtype))
        x = torch.cat([tokens, self.patch_in(patches.to(dtype))], dim=1)

        weights = condition_mask.to(tokens.dtype)[..., None]
        pooled = (tokens * weights).sum(1) / weights.sum(1)
        embedded = get_timestep_embedding(
            timestep, TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        signal = functional.silu(self.time(embedded.to(pooled.dtype)) + pooled)
        modulation = self.modulation(signal).view(batch, MODULATIONS, -1)

        # Conditions have no time: all of them are at position 0, before the frames.
        count = condition.shape[1]
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        angles = rotary((positions - count + 1).clamp(min=0), self.head_dim)
        mask = self._attention_mask(condition_mask, frame_mask, frames)
        for block in self.blocks:
            x = block(x, modulation, angles, mask)

        shift, scale = self.modulation_out(signal).chunk(2, dim=-1)
        x = modulate(self.norm_out(x[:, count:]), shift, scale)
        rest = self.patch_out(x).view(batch, -1, dim)[:, :frames].float()
        # The first term is the best linear estimate if data and noise have deviation 1.
        linear = (2 * share - 1) / deviation.square() * latents
        velocity = (linear + rest / deviation).to(latents.dtype)
        return VelocityOutput(velocity) if return_dict else (velocity,)

    def _attention_mask(
        self, condition_mask: Tensor, frame_mask: Tensor | None, frames: int
    ) -> Tensor | None:
        """Which tokens can be attended to, ``[B, 1, 1, S]``; None, which is faster, for all."""
        if frame_mask is None:
            if condition_mask.shape[1] == 1:  # The one condition that each item has.
                return None
            frame_mask = condition_mask.new_ones(len(condition_mask), frames)
        padded = functional.pad(frame_mask, (0, -frames % self.patch_frames))
        patches = padded.view(len(padded), -1, self.patch_frames).any(-1)
        mask = torch.cat([condition_mask, patches], dim=1)
        # To look would be to wait for a GPU.
        return None if not mask.is_cuda and bool(mask.all()) else mask[:, None, None]
