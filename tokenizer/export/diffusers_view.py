"""The tokenizer as diffusion pipelines know autoencoders: `DiffusersView`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.model.latent_tokenizer import LatentTokenizer


@dataclass
class PointDistribution:
    """A distribution that is certain: the encoder is deterministic."""

    mean: Float[Tensor, "B D T"]

    @property
    def std(self) -> Float[Tensor, "B D T"]:
        """Zero everywhere."""
        return torch.zeros_like(self.mean)

    def mode(self) -> Float[Tensor, "B D T"]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "B D T"]:
        """The mean; ``generator`` is taken as pipelines pass one."""
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

    Attributes:
        sampling_rate: Hz.
        hop_length: Samples per latent frame.
        dtype: Of the latents.
    """

    dtype = torch.float32

    def __init__(self, tokenizer: LatentTokenizer, *, normalized: bool = True) -> None:
        self.tokenizer, self.normalized = tokenizer, normalized
        self.sampling_rate, self.hop_length = tokenizer.sampling_rate, tokenizer.hop_length
        self.config = ViewConfig(
            sampling_rate=self.sampling_rate,
            audio_channels=tokenizer.autoencoder.num_channels,
            decoder_input_channels=tokenizer.latent_dim,
            hop_length=self.hop_length,
        )

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
