"""Stage 1: train a continuous autoencoder whose latents survive noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.autoencoders.lapped.paths import LevelStatistics, log_magnitudes
from tokenizer.autoencoders.lapped.stereo import coefficients, each_channel
from tokenizer.errors import InputError
from tokenizer.saving import whole_folder
from tokenizer.training.checkpoint import weights_digest
from tokenizer.training.clips import Clip
from tokenizer.training.crops import CropDataset
from tokenizer.training.posterior import VariationalTask
from tokenizer.training.reconstruction import (
    Audio,
    CropRun,
    PaddedAudio,
    Reconstruction,
    ReconstructionConfig,
    ReconstructionTask,
    draw_noise,
    item_noise,
    noise_places,
    noise_unit,
)

__all__ = [
    "AutoencoderTask",
    "ReconstructionConfig",
    "initialize",
    "mix_weights",
    "train_autoencoder",
]


class NoisyAutoencoder(nn.Module):
    """Encoder, Gaussian noise of a known level, decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        audio: Audio,
        noise: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"],
        first_frame: Int[Tensor, " B"],
    ) -> tuple[PaddedAudio, PaddedAudio]:
        """Reconstructs audio from noisy latents; see `Decoder.parts`."""
        latents = self.encoder(audio)
        unit = noise_unit(self.encoder, latents, alone=not self.training)
        noisy = latents + noise_level[:, None, None] * noise * unit
        return self.decoder.parts(noisy, noise_level, first_frame)


class AutoencoderTask(ReconstructionTask):
    """Stage 1: audio is reconstructed from latents under random noise."""

    def __init__(self, autoencoder: Autoencoder, run: CropRun) -> None:
        module = NoisyAutoencoder(autoencoder.encoder, autoencoder.decoder)
        super().__init__(module, autoencoder, run)

    def reconstruct(
        self, module: nn.Module, audio: Audio, items: list[Generator], generator: Generator
    ) -> Reconstruction:
        """Under noise of each item's own level."""
        del generator
        shape = (self.autoencoder.latent_dim, self.autoencoder.num_frames(audio.shape[-1]))
        noise, level = item_noise(shape, self.run.losses.noise_range, items, audio.device)
        return Reconstruction(module(audio, noise, level, noise_places(items, audio.device)))

    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """From clean latents, and under noise of 0.3."""
        shape = (self.autoencoder.latent_dim, self.autoencoder.num_frames(audio.shape[-1]))
        noise = draw_noise(shape, items, audio.device)
        first = torch.zeros(len(audio), dtype=torch.int64, device=audio.device)
        for name, level in (("clean", 0.0), ("noisy", 0.3)):
            levels = torch.full((len(audio),), level, device=audio.device)
            yield name, module(audio, noise, levels, first)[0]


@torch.no_grad()
def initialize(
    autoencoder: Autoencoder, crops: CropDataset, emphasis: float = 0.0, num_crops: int = 400
) -> None:
    """Begins the linear paths of the bundled family with the statistics of the first crops."""
    if not isinstance(autoencoder, LappedAutoencoder):
        return
    items = (crops[index] for index in range(num_crops))
    hop = autoencoder.hop_length
    c = torch.cat([coefficients(x["audio"] / x["gain"], hop) for x in items])
    if not bool(c.any()):
        raise InputError("The training audio is silent: its first crops hold only zeros.")
    magnitudes = each_channel(log_magnitudes, c, hop)
    mean = magnitudes.mean(0, dtype=torch.float64)
    levels = LevelStatistics(mean, _second_moments(magnitudes - mean.float()))
    autoencoder.initialize(_second_moments(c), levels, emphasis)


def _second_moments(x: Float[Tensor, "n M"]) -> Float[Tensor, "M M"]:
    parts = [(part.T @ part).double() for part in x.split(2**14)]
    return torch.stack(parts).sum(0) / len(x)


@torch.no_grad()
def mix_weights(autoencoder: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Takes a trained model part of the way back to where its training began.

    What is between the two is often nearly as good at the new task, and better at the old one:
    Wortsman et al., 2022, "Robust fine-tuning of zero-shot models". ``share`` is that of ``start``.
    """
    for name, value in autoencoder.state_dict().items():
        value.lerp_(start[name].to(value), share)


def train_autoencoder(
    autoencoder: Autoencoder,
    clips: list[Clip],
    out: Path,
    *,
    pretrained: bool = False,
    kl_weight: float | None = None,
    **settings: Any,
) -> None:
    """Trains in place; resumes from ``out`` if it holds a checkpoint.

    Args:
        autoencoder: The model to train.
        clips: Training audio.
        out: Folder of the run.
        pretrained: Whether the model is trained already; the linear path of a new one is
            initialised here.
        kl_weight: Trains a variational autoencoder: latents are sampled from the encoder's
            posterior, whose KL divergence from the standard Gaussian has this weight, in place of
            latent noise of drawn levels. None: the noise.
        settings: The other attributes of `CropRun`.
    """
    run = CropRun(clips, out, **settings)
    if kl_weight is None:
        task = AutoencoderTask(autoencoder, run)
    else:
        task = VariationalTask(autoencoder, run, kl_weight)
    if not pretrained and whole_folder(out / "checkpoint") is None:
        initialize(autoencoder, task.crops, run.losses.emphasis)
    start = weights_digest(autoencoder) if pretrained else None
    variational = {} if kl_weight is None else {"kl_weight": kl_weight}
    task.train(autoencoder=autoencoder.to_config(), start=start, **variational)
