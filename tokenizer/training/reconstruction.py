"""What all stages with gradients have in common: crops of audio, reconstructed and compared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.audio import write_audio
from tokenizer.autoencoders.base import Autoencoder
from tokenizer.errors import InputError
from tokenizer.training.adversarial import Adversary
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.clips import Clip, identity
from tokenizer.training.config import CropTrainingConfig, check_at_least, check_fields
from tokenizer.training.crops import CropDataset, crop_batches
from tokenizer.training.losses import (
    MEL_WINDOWS,
    MelDistance,
    band_energy_distance,
    waveform_distortion,
)
from tokenizer.training.noise import item_generators
from tokenizer.training.run_log import RunLog
from tokenizer.training.trainer import Task

# Held-out crops that samples are written of.
_SHOWN = 4


@dataclass(frozen=True)
class ReconstructionConfig:
    """Losses and the noise that latents are trained under.

    Attributes:
        mel_weight: Weight of the multi-scale mel distance.
        waveform_weight: Weight of the waveform distortion, which is in units of 10 dB.
        energy_weight: Weight of the distance of band energies. Without it, noise comes out too
            quiet.
        mel_scales_per_step: How many of the seven mel scales, drawn at random, each step computes.
        mel_overlap: Hops per window of the mel distance while training, 1 to 32; see `MelDistance`.
        noise_range: Range from which each crop's standard deviation of latent noise is drawn; below
            0 there is no noise. Noise makes the encoder spend variance where it matters, which a
            Euclidean quantizer needs.
    """

    mel_weight: float = 2.0
    waveform_weight: float = 1.0
    energy_weight: float = 1.0
    mel_scales_per_step: int = 3
    mel_overlap: int = 2
    noise_range: tuple[float, float] = (-0.15, 0.65)

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, 0, "mel_weight", "waveform_weight", "energy_weight")
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
    terms = {"mel": distance, "waveform": distortion}
    if config.energy_weight > 0:
        terms["energy"] = band_energy_distance(estimate, target, sampling_rate).mean()
        total = total + config.energy_weight * terms["energy"]
    return {"loss": total} | terms


@dataclass
class Reconstruction:
    """What a task makes of a batch.

    Attributes:
        audio: ``[B, C, N2]`` at unit loudness, with its graph; N2 is at least N.
        penalty: A scalar that is added to the loss.
        figures: Scalars for the log.
    """

    audio: Float[Tensor, "B C N2"]
    penalty: Tensor | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)


class ReconstructionTask(Task):
    """Reconstructs crops of audio; subclasses say from what.

    Args:
        module: What is trained.
        autoencoder: What it belongs to.
        crops: Those to train on and those to validate on.
        config: Weights of the losses.
        training: Batches.
        adversary: Discriminators; None trains without.
    """

    def __init__(
        self,
        module: nn.Module,
        autoencoder: Autoencoder,
        crops: tuple[CropDataset, CropDataset],
        config: ReconstructionConfig,
        training: CropTrainingConfig,
        adversary: Adversary | None = None,
    ) -> None:
        self.module, self.autoencoder = module, autoencoder
        self.crops, self.held_out = crops
        self.config, self.training, self.adversary = config, training, adversary
        self.mel = MelDistance(autoencoder.sampling_rate)

    @abstractmethod
    def reconstruct(
        self,
        module: nn.Module,
        audio: Float[Tensor, "B C N"],
        items: list[torch.Generator],
        generator: torch.Generator,
    ) -> Reconstruction:
        """Reconstructs a batch for training.

        Args:
            module: `module`, wrapped for several processes.
            audio: At unit loudness, if the autoencoder wants that.
            items: A source of randomness for each item.
            generator: A source of randomness for the batch.
        """

    @abstractmethod
    def estimates(
        self, module: nn.Module, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 C N2"]]]:
        """Yields named reconstructions of the held-out crop ``index``, to be validated."""

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        """Random crops; see `tokenizer.training.crops`."""
        return crop_batches(
            self.crops,
            batch_size=self.training.batch_size,
            first=first,
            num_workers=self.training.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def _target(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Audio with the autoencoder's number of channels, and what divides it to unit loudness."""
        audio = batch["audio"].expand(-1, self.autoencoder.num_channels, -1)
        gain = batch["gain"][:, None, None]
        return audio, gain if self.autoencoder.normalize else torch.ones_like(gain)

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of a batch: reconstruction, discriminators, and the task's own."""
        audio, scale = self._target(batch)
        items = item_generators(batch, generator)
        result = self.reconstruct(module, audio / scale, items, generator)
        estimate = result.audio[..., : audio.shape[-1]].float()
        rate = self.autoencoder.sampling_rate
        losses = reconstruction_losses(estimate * scale, audio, rate, self.config, generator)
        if self.adversary is not None:
            losses = self.adversary.add(losses, estimate, audio / scale)
        # Last, as the adversary keeps only the gradient that goes through the estimate.
        if result.penalty is not None:
            losses["loss"] = losses["loss"] + result.penalty
        return losses | result.figures

    def _held_out(self, module: nn.Module, count: int) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """Index, name, reconstruction and original of the first ``count`` held-out crops."""
        device = next(module.parameters()).device
        for index in range(count):
            item = {name: value.to(device)[None] for name, value in self.held_out[index].items()}
            audio, scale = self._target(item)
            for name, estimate in self.estimates(module, audio / scale, index):
                yield index, name, estimate[..., : audio.shape[-1]] * scale, audio

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Mean mel distance and SNR in dB of each kind of `estimates`, on held-out crops."""
        sums: dict[str, float] = {}
        for _, name, estimate, audio in self._held_out(module, len(self.held_out)):
            mel, snr = self.mel(estimate, audio), -10 * waveform_distortion(estimate, audio)
            for figure, value in ((f"mel_{name}", mel), (f"snr_{name}", snr)):
                sums[figure] = sums.get(figure, 0.0) + float(value)
        return {name: value / len(self.held_out) for name, value in sums.items()}

    def show(self, step: int, folder: Path, log: RunLog) -> None:
        """Writes the first held-out crops and what becomes of them."""
        folder.mkdir(parents=True, exist_ok=True)
        rate = self.autoencoder.sampling_rate
        sounds = {}
        for index, name, estimate, audio in self._held_out(
            self.module, min(_SHOWN, len(self.held_out))
        ):
            sounds[f"{index}-original"] = audio
            sounds[f"{index}-{name}"] = estimate
        for name, sound in sounds.items():
            write_audio(folder / f"{name}.wav", sound[0], rate)
        log.add_samples(step, [(n, x[0].cpu().numpy(), rate) for n, x in sounds.items()])


def spread_numbers(codebooks: int) -> list[int]:
    """The numbers of codebooks to validate with: 1/8, 5/12, 2/3 and all of them."""
    return sorted({max(1, round(codebooks * share)) for share in (0.125, 0.4167, 0.6667, 1)})


def describe_run(
    clips: list[Clip],
    losses: ReconstructionConfig,
    augmentation: Augmentation,
    adversary: Adversary | None,
    num_held_out: int,
    **details: Any,
) -> dict[str, Any]:
    """What a resumed run must share with the run it continues, besides its configuration."""
    return {
        "losses": asdict(losses),
        "adversarial": None if adversary is None else asdict(adversary.config),
        "augmentation": asdict(augmentation),
        "clips": identity(clips),
        "held_out": num_held_out,
        **details,
    }
