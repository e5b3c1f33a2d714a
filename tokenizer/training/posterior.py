"""Stage 1 of a variational autoencoder: latents are samples of a posterior near the Gaussian."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.errors import InputError
from tokenizer.training.reconstruction import (
    Audio,
    CropRun,
    PaddedAudio,
    Reconstruction,
    ReconstructionTask,
    draw_noise,
    noise_places,
)


class VariationalAutoencoder(nn.Module):
    """Encoder, a sample of its posterior, decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self, audio: Audio, noise: Float[Tensor, "B D T"], first_frame: Int[Tensor, " B"]
    ) -> tuple[tuple[PaddedAudio, PaddedAudio], Float[Tensor, ""]]:
        """Audio (`Decoder.parts`) of ``mean + deviation * noise``; the KL divergence."""
        posterior = self.encoder.posterior(audio)
        assert posterior is not None
        mean, deviation = (x.float() for x in posterior)
        parts = self.decoder.parts(mean + deviation * noise, None, first_frame)
        return parts, kl_divergence(mean, deviation)


def kl_divergence(
    mean: Float[Tensor, "B D T"], deviation: Float[Tensor, "B D T"]
) -> Float[Tensor, ""]:
    """From a Gaussian to the standard one, in nats a frame: summed over D, averaged over frames."""
    variance = deviation.square()
    return (mean.square() + variance - variance.log() - 1).sum(1).mean() / 2


class VariationalTask(ReconstructionTask):
    """Stage 1 with a posterior in place of latent noise of drawn levels.

    Raises:
        ValueError: If the encoder gives no posterior, or the weight is negative.
    """

    def __init__(self, autoencoder: Autoencoder, run: CropRun, kl_weight: float) -> None:
        samples = torch.zeros(1, autoencoder.num_channels, autoencoder.hop_length)
        with torch.no_grad():
            posterior = autoencoder.encoder.posterior(samples)
        if posterior is None:
            raise InputError(
                f"The {autoencoder.kind} encoder gives latents, not a mean and a variance to "
                "sample: leave out --bottleneck kl, and latent noise of known levels (noise_range) "
                "takes its place. The oobleck encoder has a posterior."
            )
        if not 0 <= kl_weight < float("inf"):
            raise InputError(f"kl_weight must be at least 0 and finite, got {kl_weight}.")
        module = VariationalAutoencoder(autoencoder.encoder, autoencoder.decoder)
        super().__init__(module, autoencoder, run)
        self.kl_weight = kl_weight

    def reconstruct(
        self, module: nn.Module, audio: Audio, items: list[Generator], generator: Generator
    ) -> Reconstruction:
        """From a sample of each item's posterior."""
        del generator
        noise = draw_noise(self._shape(audio), items, audio.device)
        estimate, kl = module(audio, noise, noise_places(items, audio.device))
        return Reconstruction(estimate, self.kl_weight * kl, {"kl": kl})

    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """From means, and from a sample."""
        noise = draw_noise(self._shape(audio), items, audio.device)
        first = torch.zeros(len(audio), dtype=torch.int64, device=audio.device)
        for name, level in (("clean", 0.0), ("sampled", 1.0)):
            yield name, module(audio, level * noise, first)[0][0]

    def _shape(self, audio: Audio) -> tuple[int, int]:
        return self.autoencoder.latent_dim, self.autoencoder.num_frames(audio.shape[-1])
