"""The tokenizer as diffusion pipelines know autoencoders.

That is: ``.encode(x).latent_dist`` and ``.decode(z).sample``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.model.latent_tokenizer import LatentTokenizer


@dataclass
class PointDistribution:
    """A distribution that is certain: the encoder is deterministic.

    Attributes:
        mean: ``[B, D, T]``.
    """

    mean: Float[Tensor, "B D T"]

    @property
    def std(self) -> Float[Tensor, "B D T"]:
        """Zero everywhere."""
        return torch.zeros_like(self.mean)

    def mode(self) -> Float[Tensor, "B D T"]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "B D T"]:
        """The mean: there is nothing to draw. ``generator`` is taken as pipelines pass one."""
        del generator
        return self.mean


@dataclass
class ViewEncoderOutput:
    """What ``encode`` returns: ``latent_dist``."""

    latent_dist: PointDistribution


@dataclass
class ViewDecoderOutput:
    """What ``decode`` returns: ``sample``, audio ``[B, C, N]``."""

    sample: Float[Tensor, "B C N"]


@dataclass(frozen=True)
class ViewConfig:
    """The numbers that pipelines read from an autoencoder's ``config``."""

    sampling_rate: int
    audio_channels: int
    decoder_input_channels: int
    hop_length: int


class DiffusersView:
    """Presents a tokenizer's continuous side with the calls of ``diffusers.AutoencoderOobleck``.

    Latents are normalised to mean 0 and deviation 1 in every channel, as diffusion models want
    them; `decode` undoes it. Models that normalise loudness decode at the checkpoint's default
    level, as a generated latent has no gain.

    Args:
        tokenizer: Its encoder and continuous decoder are used.
        normalized: Whether latents are normalised; False gives them as the encoder makes them.
    """

    def __init__(self, tokenizer: LatentTokenizer, *, normalized: bool = True) -> None:
        self.tokenizer, self.normalized = tokenizer, normalized
        self.config = ViewConfig(
            sampling_rate=tokenizer.sampling_rate,
            audio_channels=tokenizer.autoencoder.num_channels,
            decoder_input_channels=tokenizer.latent_dim,
            hop_length=tokenizer.hop_length,
        )

    @property
    def sampling_rate(self) -> int:
        """Hz."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.config.hop_length

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents: always float32."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the tokenizer is."""
        return self.tokenizer.device

    def encode(self, x: Float[Tensor, "B C N"]) -> ViewEncoderOutput:
        """Audio to a (certain) distribution of latents."""
        z = self.tokenizer.encode(x).latents
        z = self.tokenizer.normalize_latents(z) if self.normalized else z
        return ViewEncoderOutput(PointDistribution(z))

    def decode(self, z: Float[Tensor, "B D T"]) -> ViewDecoderOutput:
        """Latents to audio."""
        z = z.to(self.device, torch.float32)
        z = self.tokenizer.denormalize_latents(z) if self.normalized else z
        return ViewDecoderOutput(self.tokenizer.decode(z, decoder="continuous"))
