"""Stage 1: train a continuous autoencoder whose latents survive noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.autoencoders.lapped.paths import LevelStatistics, log_magnitudes
from tokenizer.networks.spectral import mdct
from tokenizer.saving import whole_folder
from tokenizer.training.adversarial import AdversarialConfig, Adversary, make_adversary
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.checkpoint import weights_digest
from tokenizer.training.clips import Clip
from tokenizer.training.config import CropTrainingConfig
from tokenizer.training.crops import CropDataset, crop_datasets
from tokenizer.training.noise import item_noise
from tokenizer.training.reconstruction import (
    Reconstruction,
    ReconstructionConfig,
    ReconstructionTask,
    describe_run,
)
from tokenizer.training.trainer import Trainer

__all__ = [
    "AutoencoderTask",
    "ReconstructionConfig",
    "initialize",
    "mix_weights",
    "train_autoencoder",
]


class NoisyAutoencoder(nn.Module):
    """Encoder, Gaussian noise of a known level, decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        audio: Float[Tensor, "B C N"],
        noise: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"],
    ) -> Float[Tensor, "B C N2"]:
        """Reconstructs audio from noisy latents."""
        latents = self.encoder(audio)
        return self.decoder(latents + noise_level[:, None, None] * noise, noise_level)


class AutoencoderTask(ReconstructionTask):
    """Stage 1: audio is reconstructed from latents under random noise."""

    def __init__(
        self,
        autoencoder: LappedAutoencoder,
        crops: tuple[CropDataset, CropDataset],
        config: ReconstructionConfig,
        training: CropTrainingConfig,
        adversary: Adversary | None = None,
    ) -> None:
        module = NoisyAutoencoder(autoencoder.encoder, autoencoder.decoder)
        super().__init__(module, autoencoder, crops, config, training, adversary)

    def reconstruct(
        self,
        module: nn.Module,
        audio: Float[Tensor, "B C N"],
        items: list[torch.Generator],
        generator: torch.Generator,
    ) -> Reconstruction:
        """Under noise of each item's own level."""
        del generator
        shape = (self.autoencoder.latent_dim, self.autoencoder.num_frames(audio.shape[-1]))
        noise, level = item_noise(shape, self.config.noise_range, items, audio.device)
        return Reconstruction(module(audio, noise, level))

    def estimates(
        self, module: nn.Module, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 C N2"]]]:
        """From clean latents, and under noise of 0.3."""
        shape = (1, self.autoencoder.latent_dim, self.autoencoder.num_frames(audio.shape[-1]))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(index)).to(audio.device)
        for name, level in (("clean", 0.0), ("noisy", 0.3)):
            yield name, module(audio, noise, torch.full((1,), level, device=audio.device))


@torch.no_grad()
def initialize(autoencoder: LappedAutoencoder, crops: CropDataset, num_crops: int = 400) -> None:
    """Begins the linear paths with the statistics of the first crops."""
    items = (crops[index] for index in range(num_crops))
    c = torch.cat([mdct(x["audio"][0] / x["gain"], autoencoder.hop_length) for x in items])
    magnitudes = log_magnitudes(c)
    mean = magnitudes.mean(0, dtype=torch.float64)
    covariance = _second_moments(magnitudes - mean.float())
    levels = LevelStatistics(mean, covariance)
    autoencoder.initialize(_second_moments(c), levels)


def _second_moments(x: Float[Tensor, "n M"]) -> Float[Tensor, "M M"]:
    parts = [(part.T @ part).double() for part in x.split(2**14)]
    return torch.stack(parts).sum(0) / len(x)


@torch.no_grad()
def mix_weights(autoencoder: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Takes a trained model part of the way back to where its training began.

    What is between the two is often nearly as good at the new task, and better at the old one:
    Wortsman et al., 2022, "Robust fine-tuning of zero-shot models".

    Args:
        autoencoder: Changed in place.
        start: Its weights before training.
        share: Of these, 0 to 1.
    """
    for name, value in autoencoder.state_dict().items():
        value.lerp_(start[name].to(value), share)


def train_autoencoder(
    autoencoder: LappedAutoencoder,
    clips: list[Clip],
    out: Path,
    *,
    loop: CropTrainingConfig,
    losses: ReconstructionConfig,
    augmentation: Augmentation,
    adversarial: AdversarialConfig | None = None,
    pretrained: bool = False,
    num_held_out: int = 16,
    progress: bool = True,
) -> None:
    """Trains in place; resumes from ``out`` if it holds a checkpoint.

    Args:
        autoencoder: The model to train.
        clips: Training audio.
        out: Folder of the run.
        loop: Steps, batches, learning rate.
        losses: Weights and latent noise.
        augmentation: Of the crops.
        adversarial: Weights of the adversarial losses; None trains without discriminators.
        pretrained: Whether the model is trained already; the linear path of a new one is
            initialised here.
        num_held_out: Files kept for validation.
        progress: Whether to show a bar.
    """
    crops = crop_datasets(
        clips,
        loop,
        sampling_rate=autoencoder.sampling_rate,
        augmentation=augmentation,
        seed=loop.seed,
        num_held_out=num_held_out,
    )
    if not pretrained and whole_folder(out / "checkpoint") is None:
        initialize(autoencoder, crops[0])
    adversary = make_adversary(adversarial, loop.mixed_precision, loop.seed)
    task = AutoencoderTask(autoencoder, crops, losses, loop, adversary)
    description = describe_run(
        clips,
        losses,
        augmentation,
        adversary,
        num_held_out,
        autoencoder=autoencoder.to_config(),
        start=weights_digest(autoencoder) if pretrained else None,
    )
    Trainer(task, loop, out, description=description, adversary=adversary, progress=progress).run()
