"""What all stages with gradients have in common: crops of audio, reconstructed and compared."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.audio import write_audio
from tokenizer.autoencoders.base import Autoencoder, Encoder
from tokenizer.devices import generator_on, send
from tokenizer.errors import InputError
from tokenizer.networks.noise import PRIME
from tokenizer.training.adversarial import AdversarialConfig, make_adversary
from tokenizer.training.augmentation import NO_AUGMENTATION, Augmentation
from tokenizer.training.clips import Clip, identity, split_clips
from tokenizer.training.config import CropTrainingConfig, check_fields
from tokenizer.training.crops import CropDataset, crop_batches
from tokenizer.training.losses import (
    MEL_WINDOWS,
    MelDistance,
    band_energy_distance,
    emphasize,
    repetition_excess,
    waveform_distortion,
)
from tokenizer.training.processes import num_processes
from tokenizer.training.run_log import RunLog
from tokenizer.training.trainer import Task, Trainer

Audio = Float[Tensor, "B C N"]
# The decoder rounds the length up to whole frames.
PaddedAudio = Float[Tensor, "B C N2"]

# Crops of each validation, and those of them that samples are written of.
HELD_OUT_CROPS, _SHOWN = 32, 4


@dataclass(frozen=True)
class ReconstructionConfig:
    """Losses and the noise that latents are trained under.

    Attributes:
        mel_weight: Weight of the multi-scale mel distance.
        waveform_weight: Weight of the waveform distortion, which is in units of 10 dB.
        energy_weight: Weight of the distance of band energies. Without it, noise comes out too
            quiet.
        repetition_weight: Weight of what repeats from frame to frame in the treble, above what
            does in the original: `buzz` of latok evaluate. For decoders that add noise.
        emphasis: Pre-emphasis of the waveform distortion, 0 to 1: 0.9 raises 4 kHz by 15 dB over
            the lowest frequencies, so that fewer bits are spent on these and more on what makes
            speech intelligible. It costs SI-SDR. A new linear path begins with the same weights.
        mel_scales_per_step: How many of the seven mel scales, drawn at random, each step computes.
        mel_overlap: Hops per window of the mel distance while training, 1 to 32; see `MelDistance`.
        noise_share: How much of the waveform distortion counts the noise that the decoder adds, 0
            to 1. The rest is measured without it: noise at the right level doubles the distortion,
            and would not be learned.
        noise_range: Range from which each crop's standard deviation of latent noise is drawn; below
            0 there is no noise. Noise makes the encoder spend variance where it matters, which a
            Euclidean quantizer needs.
    """

    mel_weight: float = 2.0
    waveform_weight: float = 1.0
    energy_weight: float = 1.0
    repetition_weight: float = 0.0
    emphasis: float = 0.0
    mel_scales_per_step: int = 3
    mel_overlap: int = 2
    noise_share: float = 0.25
    noise_range: tuple[float, float] = (-0.15, 0.65)

    def __post_init__(self) -> None:
        weights = ("mel_weight", "waveform_weight", "energy_weight", "repetition_weight")
        bounds: dict[str, Any] = dict.fromkeys(weights, (0, math.inf))
        bounds["mel_scales_per_step"] = (1, len(MEL_WINDOWS))
        bounds |= {"mel_overlap": (1, min(MEL_WINDOWS))}
        bounds |= dict.fromkeys(("noise_share", "emphasis"), (0, 1))
        check_fields(self, **bounds)


def reconstruction_losses(
    estimate: Audio,
    expected: Audio,
    target: Audio,
    sampling_rate: int,
    hop_length: int,
    config: ReconstructionConfig,
    generator: Generator,
) -> dict[str, Tensor]:
    """The losses that stages 1 and 3 share, and their weighted sum.

    ``expected`` is the estimate without the decoder's noise.
    """
    mel = MelDistance(sampling_rate, overlap=config.mel_overlap)
    order = torch.randperm(len(mel.scales), generator=generator).tolist()
    distance = mel(estimate, target, scales=order[: config.mel_scales_per_step]).mean()
    weighted = emphasize(target, config.emphasis)
    distortion = waveform_distortion(emphasize(estimate, config.emphasis), weighted).mean()
    if expected is not estimate:
        known = waveform_distortion(emphasize(expected, config.emphasis), weighted).mean()
        distortion = known + config.noise_share * (distortion - known)
    total = config.mel_weight * distance + config.waveform_weight * distortion
    terms = {"mel": distance, "waveform": distortion}
    if config.energy_weight > 0:
        terms["energy"] = band_energy_distance(estimate, target, sampling_rate).mean()
        total = total + config.energy_weight * terms["energy"]
    if config.repetition_weight > 0:
        terms["repetition"] = repetition_excess(estimate, target, sampling_rate, hop_length).mean()
        total = total + config.repetition_weight * terms["repetition"]
    return {"loss": total} | terms


@dataclass
class Reconstruction:
    """What a task makes of a batch: audio, a scalar added to the loss, scalars for the log.

    The audio comes from `Decoder.parts`: as it is, and without the decoder's noise.
    """

    audio: tuple[PaddedAudio, PaddedAudio]
    penalty: Tensor | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CropRun:
    """A training run on crops of audio: what all stages with gradients are told.

    Attributes:
        clips: Training audio.
        out: Folder of the run, which is resumed if it holds a checkpoint.
        loop: Steps, batches, learning rate.
        losses: Weights and latent noise.
        augmentation: Of the crops.
        adversarial: Weights of the adversarial losses; None trains without discriminators.
        num_held_out: Files kept for validation.
        progress: Whether to show a bar.
    """

    clips: list[Clip]
    out: Path
    loop: CropTrainingConfig
    losses: ReconstructionConfig
    augmentation: Augmentation
    adversarial: AdversarialConfig | None = None
    num_held_out: int = 16
    progress: bool = True

    def crops(
        self, sampling_rate: int, seed_offset: int = 0, num_channels: int = 1
    ) -> tuple[CropDataset, CropDataset]:
        """All augmented crops of the run, and `HELD_OUT_CROPS` plain ones of 4 s to validate on.

        The latter come from ``num_held_out`` other clips, but never more than a fifth of them; if
        that leaves none, from the same.
        """
        if self.num_held_out < 0:
            raise InputError(f"num_held_out must not be negative, got {self.num_held_out}.")
        count, loop = min(self.num_held_out, len(self.clips) // 5), self.loop
        train, held_out = split_clips(self.clips, count) if count else (self.clips, self.clips)
        return (
            CropDataset(
                train,
                sampling_rate=sampling_rate,
                crop_length=round(loop.crop_seconds * sampling_rate),
                augmentation=self.augmentation,
                seed=loop.seed + seed_offset,
                length=loop.steps * loop.accumulate * loop.batch_size * num_processes(),
                num_channels=num_channels,
            ),
            CropDataset(
                held_out,
                sampling_rate=sampling_rate,
                crop_length=4 * sampling_rate,
                augmentation=NO_AUGMENTATION,
                seed=1,
                length=HELD_OUT_CROPS,
                num_channels=num_channels,
            ),
        )


class ReconstructionTask(Task):
    """Reconstructs crops of audio; subclasses say from what.

    With a ``seed_offset``, stages with one seed get other crops.
    """

    on_host = frozenset({"index", "unreadable"})

    def __init__(
        self, module: nn.Module, autoencoder: Autoencoder, run: CropRun, seed_offset: int = 0
    ) -> None:
        self.module, self.autoencoder, self.run = module, autoencoder, run
        rate = autoencoder.sampling_rate
        self.crops, self.held_out = run.crops(rate, seed_offset, autoencoder.num_channels)
        self.adversary = make_adversary(
            run.adversarial, run.loop.mixed_precision, rate, run.loop.seed
        )
        self.mel = MelDistance(autoencoder.sampling_rate)

    def train(self, **description: Any) -> None:
        """Takes all steps of the run; ``description`` adds to what a resumed run must share."""
        run, adversary = self.run, self.adversary
        shared = {
            "losses": asdict(run.losses),
            "adversarial": None if adversary is None else asdict(adversary.config),
            "augmentation": asdict(run.augmentation),
            "clips": identity(run.clips),
            "held_out": run.num_held_out,
        }
        Trainer(
            self,
            run.loop,
            run.out,
            description=shared | description,
            adversary=adversary,
            progress=run.progress,
        ).run()

    @abstractmethod
    def reconstruct(
        self, module: nn.Module, audio: Audio, items: list[Generator], generator: Generator
    ) -> Reconstruction:
        """Reconstructs a batch, at unit loudness if the autoencoder wants that, for training.

        Each of the ``items`` has a source of randomness of its own, and the batch has one.
        """

    @abstractmethod
    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """Yields named reconstructions of held-out crops, to be validated.

        Each of the ``items`` has a source of randomness of its own, the same each time. None may
        depend on the others.
        """

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        """Random crops; see `tokenizer.training.crops`."""
        loop = self.run.loop
        return crop_batches(
            self.crops,
            batch_size=loop.batch_size,
            first=first,
            num_workers=loop.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """Losses of a batch: reconstruction, discriminators, and the task's own."""
        audio, scale = crop_target(self.autoencoder, batch)
        items = item_generators(batch, generator)
        result = self.reconstruct(module, audio / scale, items, generator)
        estimate, expected = (x[..., : audio.shape[-1]].float() for x in result.audio)
        heard = estimate * scale
        expected = heard if result.audio[0] is result.audio[1] else expected * scale
        sizes = self.autoencoder.sampling_rate, self.autoencoder.hop_length
        losses = reconstruction_losses(heard, expected, audio, *sizes, self.run.losses, generator)
        if self.adversary is not None:
            losses = self.adversary.add(losses, estimate, audio / scale)
        # Last, as the adversary keeps only the gradient that goes through the estimate.
        if result.penalty is not None:
            losses["loss"] = losses["loss"] + result.penalty
        return losses | result.figures

    def _held_out(self, module: nn.Module, count: int) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """First index, name, reconstructions and originals of the first ``count`` held-out crops.

        They come in batches as large as those of training.
        """
        device = next(module.parameters()).device
        for first in range(0, count, self.run.loop.batch_size):
            indices = range(first, min(first + self.run.loop.batch_size, count))
            crops = [self.held_out[index] for index in indices]
            batch = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
            batch = {name: send(batch[name], device) for name in ("audio", "gain")}
            audio, scale = crop_target(self.autoencoder, batch)
            items = [Generator().manual_seed(index) for index in indices]
            for name, estimate in self.estimates(module, audio / scale, items):
                yield first, name, estimate[..., : audio.shape[-1]] * scale, audio

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Mean mel distance and SNR in dB of each kind of `estimates`, on held-out crops.

        Of stereo also the SNR of the side channel, half the difference of left and right.
        """
        sums: dict[str, Tensor] = {}
        for _, name, estimate, audio in self._held_out(module, len(self.held_out)):
            mel, snr = self.mel(estimate, audio), -10 * waveform_distortion(estimate, audio)
            figures = {f"mel_{name}": mel, f"snr_{name}": snr}
            if audio.shape[1] == 2:
                sides = [(x[:, :1] - x[:, 1:]) / 2 for x in (estimate, audio)]
                figures[f"snr_side_{name}"] = -10 * waveform_distortion(*sides)
            for figure, values in figures.items():
                sums[figure] = sums.get(figure, 0.0) + values.sum()
        return {name: float(value) / len(self.held_out) for name, value in sums.items()}

    def show(self, step: int, folder: Path, log: RunLog) -> None:
        """Writes the first held-out crops and what becomes of them."""
        folder.mkdir(parents=True, exist_ok=True)
        rate = self.autoencoder.sampling_rate
        sounds = {}
        for first, name, estimates, originals in self._held_out(
            self.module, min(_SHOWN, len(self.held_out))
        ):
            for index, pair in enumerate(zip(originals, estimates, strict=True), first):
                sounds[f"{index}-original"], sounds[f"{index}-{name}"] = pair
        for name, sound in sounds.items():
            write_audio(folder / f"{name}.wav", sound, rate)
        log.add_samples(step, [(n, x.cpu().numpy(), rate) for n, x in sounds.items()])


def crop_target(autoencoder: Autoencoder, batch: dict[str, Tensor]) -> tuple[Audio, Tensor]:
    """Audio, and what divides it to the level that the autoencoder wants, ``[B, 1, 1]``."""
    audio, gain = batch["audio"], batch["gain"][:, None, None]
    if not autoencoder.normalize:
        return audio, torch.ones_like(gain)
    if autoencoder.peak is not None:
        gain = audio.abs().amax((1, 2), keepdim=True) / autoencoder.peak + 1e-5
    return audio, gain


def item_generators(batch: dict[str, Tensor], generator: Generator) -> list[Generator]:
    """A generator for each item of a batch, by its ``"index"`` in the data of the whole run.

    So what is drawn for an item does not depend on the process that it is in.
    """
    base = int(torch.randint(2**62, (), generator=generator))
    return [Generator().manual_seed(base + i) for i in batch["index"].tolist()]


def noise_places(items: list[Generator], device: torch.device) -> Int[Tensor, " B"]:
    """A first frame for each item, so that its decoder's noise is another in every step."""
    drawn = [torch.randint(PRIME, (), generator=g) for g in items]
    return send(torch.stack(drawn), device)


def item_noise(
    shape: tuple[int, int],
    noise_range: tuple[float, float],
    items: list[Generator],
    device: torch.device,
) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Gaussian noise for each item, and its level ``max(0, U(*noise_range))``, not yet applied."""
    low, high = noise_range
    level = torch.stack([torch.rand((), generator=g) for g in items]) * (high - low) + low
    return draw_noise(shape, items, device), send(level.clamp(min=0), device)


def draw_noise(
    shape: tuple[int, int], items: list[Generator], device: torch.device
) -> Float[Tensor, "B D T"]:
    """Gaussian noise for each item, drawn where it is used."""
    drawn = [torch.randn(shape, generator=generator_on(device, g), device=device) for g in items]
    return torch.stack(drawn)


def draw_uniform(items: list[Generator]) -> list[float]:
    """A number from 0 to 1 for each item."""
    return torch.stack([torch.rand((), generator=g) for g in items]).tolist()


def noise_unit(
    encoder: Encoder, latents: Float[Tensor, "B D T"], *, alone: bool
) -> Float[Tensor, "*B 1 1"]:
    """`Encoder.noise_unit` of the batch or, to validate, of each item ``alone``."""
    if not alone:
        return encoder.noise_unit(latents)[None, None]
    return torch.stack([encoder.noise_unit(item[None]) for item in latents])[:, None, None]


def add_noise(
    latents: Float[Tensor, "B D T"],
    noise_range: tuple[float, float],
    items: list[Generator],
    unit: Float[Tensor, "*B 1 1"],
) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Latents under noise of each item's own level (`noise_unit`), and the levels."""
    shape = (latents.shape[1], latents.shape[2])
    noise, level = item_noise(shape, noise_range, items, latents.device)
    return latents + level[:, None, None] * noise * unit, level


def spread_numbers(codebooks: int) -> list[int]:
    """The numbers of codebooks to validate with: 1/8, 5/12, 2/3 and all of them."""
    return sorted({max(1, round(codebooks * share)) for share in (0.125, 0.4167, 0.6667, 1)})
