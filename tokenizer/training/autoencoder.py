"""Stage 1: train a continuous autoencoder whose latents survive noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.autoencoders.lapped.paths import LevelStatistics, log_magnitudes
from tokenizer.errors import InputError
from tokenizer.networks.spectral import mdct
from tokenizer.training.adversarial import AdversarialConfig, Adversary, make_adversary
from tokenizer.training.data import (
    Augmentation,
    Clip,
    CropDataset,
    crop_batches,
    crop_datasets,
    identity,
)
from tokenizer.training.loop import LoopConfig, item_generators, num_processes, run
from tokenizer.training.losses import (
    MEL_WINDOWS,
    MelDistance,
    band_energy_distance,
    waveform_distortion,
)
from tokenizer.training.state import weights_digest


@dataclass(frozen=True)
class ReconstructionConfig:
    """Losses and the noise that latents are trained under.

    Attributes:
        mel_weight: Of the multi-scale mel distance.
        waveform_weight: Of the waveform distortion, in units of 10 dB.
        energy_weight: Of the distance of band energies. Without it, noise comes out too quiet.
        mel_scales_per_step: How many of the seven scales, drawn at random, each step computes.
        mel_overlap: Hops of a window while training, 1 to 32; see `MelDistance`.
        noise_range: Latents get Gaussian noise of standard deviation ``max(0, U(*noise_range))``,
            drawn per crop. It makes the encoder spend variance where it matters, which is what a
            Euclidean quantizer needs.
    """

    mel_weight: float = 2.0
    waveform_weight: float = 1.0
    energy_weight: float = 1.0
    mel_scales_per_step: int = 3
    mel_overlap: int = 2
    noise_range: tuple[float, float] = (-0.15, 0.65)

    def __post_init__(self) -> None:
        if not 1 <= self.mel_scales_per_step <= len(MEL_WINDOWS):
            raise InputError(f"mel_scales_per_step must be 1..{len(MEL_WINDOWS)}: {self}.")
        if not 1 <= self.mel_overlap <= min(MEL_WINDOWS):
            raise InputError(f"mel_overlap must be 1..{min(MEL_WINDOWS)}: {self}.")


def reconstruction_losses(
    estimate: Float[Tensor, "B C N"],
    target: Float[Tensor, "B C N"],
    sampling_rate: int,
    config: ReconstructionConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses that stages 1 and 3 share: mel, waveform, energy and their weighted sum."""
    mel = MelDistance(sampling_rate, overlap=config.mel_overlap)
    order = torch.randperm(len(mel.scales), generator=generator).tolist()
    distance = mel(estimate, target, scales=order[: config.mel_scales_per_step]).mean()
    distortion = waveform_distortion(estimate, target).mean()
    total = config.mel_weight * distance + config.waveform_weight * distortion
    found = {"mel": distance, "waveform": distortion}
    if config.energy_weight > 0:
        found["energy"] = band_energy_distance(estimate, target, sampling_rate).mean()
        total = total + config.energy_weight * found["energy"]
    return {"loss": total} | found


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


class AutoencoderTask:
    """Stage 1 as `tokenizer.training.loop.run` wants it."""

    def __init__(
        self,
        autoencoder: LappedAutoencoder,
        train: CropDataset,
        held_out: CropDataset,
        losses: ReconstructionConfig,
        loop: LoopConfig,
        adversary: Adversary | None = None,
    ) -> None:
        self.autoencoder, self.train, self.held_out = autoencoder, train, held_out
        self.config, self.loop, self.adversary = losses, loop, adversary
        self.module = NoisyAutoencoder(autoencoder.encoder, autoencoder.decoder)
        self.mel = MelDistance(autoencoder.sampling_rate)

    def batches(self, first_step: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        """Random crops; see `tokenizer.training.data`."""
        return crop_batches(
            self.train,
            batch_size=self.loop.batch_size,
            first_step=first_step,
            num_workers=self.loop.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of a batch under random latent noise."""
        audio, gain = batch["audio"], batch["gain"][:, None, None]
        frames = self.autoencoder.num_frames(audio.shape[-1])
        shape = (self.autoencoder.latent_dim, frames)
        items = item_generators(batch, generator)
        noise, level = item_noise(shape, self.config.noise_range, items, audio.device)
        estimate = module(audio / gain, noise, level)[..., : audio.shape[-1]].float()
        losses = reconstruction_losses(
            estimate * gain, audio, self.mel.sampling_rate, self.config, generator
        )
        if self.adversary is None:
            return losses
        return self.adversary.add(losses, estimate, audio / gain)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Mel distance and SNR on held-out crops, from clean latents and under noise of 0.3."""
        sums: dict[str, float] = {}
        device = next(self.module.parameters()).device
        for index in range(len(self.held_out)):
            item = {name: value.to(device)[None] for name, value in self.held_out[index].items()}
            audio, gain = item["audio"], item["gain"][:, None, None]
            latents = self.autoencoder.encoder(audio / gain)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
            for name, level in (("clean", 0.0), ("noisy", 0.3)):
                estimate = self.autoencoder.decoder(
                    latents + level * noise.to(device), torch.full((1,), level, device=device)
                )
                estimate = estimate[..., : audio.shape[-1]] * gain
                sums[f"{name}_mel"] = sums.get(f"{name}_mel", 0.0) + float(
                    self.mel(estimate, audio)
                )
                snr = -10 * float(waveform_distortion(estimate, audio))
                sums[f"{name}_snr"] = sums.get(f"{name}_snr", 0.0) + snr
        return {name: value / len(self.held_out) for name, value in sums.items()}


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
    loop: LoopConfig,
    losses: ReconstructionConfig,
    augmentation: Augmentation,
    adversarial: AdversarialConfig | None = None,
    pretrained: bool = False,
    num_held_out: int = 16,
    progress: bool = True,
) -> bool:
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

    Returns:
        Whether all steps are done.
    """
    train, held_out = crop_datasets(
        clips,
        sampling_rate=autoencoder.sampling_rate,
        crop_seconds=loop.crop_seconds,
        augmentation=augmentation,
        seed=loop.seed,
        length=loop.steps * loop.batch_size * num_processes(),
        num_held_out=num_held_out,
    )
    if not pretrained and not (out / "checkpoint").exists():
        initialize(autoencoder, train)
    adversary = make_adversary(adversarial, loop.mixed_precision, loop.seed)
    task = AutoencoderTask(autoencoder, train, held_out, losses, loop, adversary)
    description = {
        "autoencoder": autoencoder.to_config(),
        "losses": asdict(losses),
        "adversarial": None if adversary is None else asdict(adversary.config),
        "augmentation": asdict(augmentation),
        "clips": identity(clips),
        "held_out": num_held_out,
        "start": weights_digest(autoencoder) if pretrained else None,
    }
    return run(task, loop, out, description=description, adversary=adversary, progress=progress)
