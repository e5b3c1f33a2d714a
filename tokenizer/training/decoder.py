"""Stage 3: encoder and quantizer frozen, a decoder finetuned on quantized latents or exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.adversarial import AdversarialConfig, Adversary, make_adversary
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.checkpoint import weights_digest
from tokenizer.training.clips import Clip
from tokenizer.training.config import CropTrainingConfig, check_fields
from tokenizer.training.crops import CropDataset, crop_datasets
from tokenizer.training.noise import add_noise
from tokenizer.training.processes import training_device
from tokenizer.training.reconstruction import (
    Reconstruction,
    ReconstructionConfig,
    ReconstructionTask,
    describe_run,
    spread_numbers,
)
from tokenizer.training.trainer import Trainer


@dataclass(frozen=True)
class FinetuneConfig:
    """What the decoder is finetuned on.

    Attributes:
        decoder: "finetuned", the decoder of codes, or "continuous", the decoder of latents. The
            latter is trained further for the encoder as it is, under the noise of
            `ReconstructionConfig.noise_range`.
        min_codebooks: Smallest number of codebooks that a crop is decoded from, for the decoder of
            codes. The number is drawn log-uniformly, so that one decoder serves every rate.
        continue_finetuned: Whether to start from an existing finetuned decoder instead of the
            continuous one, for the decoder of codes.
        coded_share: Share of the crops that are decoded without detail, so that one decoder serves
            latents with detail and without.
    """

    decoder: str = "finetuned"
    min_codebooks: int = 2
    continue_finetuned: bool = False
    coded_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.decoder not in ("finetuned", "continuous"):
            raise InputError(f'decoder must be "finetuned" or "continuous", got {self.decoder!r}.')
        if self.decoder == "continuous" and self.continue_finetuned:
            raise InputError("continue_finetuned is for the finetuned decoder, not the continuous.")
        if not 0 <= self.coded_share <= 1:
            raise InputError(f"coded_share is a share, 0 to 1, got {self.coded_share:g}.")
        if self.min_codebooks < 1:
            raise InputError(f"min_codebooks must be at least 1, got {self.min_codebooks}.")


class DecoderTask(ReconstructionTask):
    """Stage 3: audio is decoded from the codes of each crop's own number of codebooks."""

    def __init__(
        self,
        tokenizer: LatentTokenizer,
        decoder: nn.Module,
        crops: tuple[CropDataset, CropDataset],
        config: ReconstructionConfig,
        finetune: FinetuneConfig,
        training: CropTrainingConfig,
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__(decoder, tokenizer.autoencoder, crops, config, training, adversary)
        self.tokenizer, self.finetune = tokenizer, finetune

    @torch.no_grad()
    def exact(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """What the encoder makes of audio."""
        mixed = self.training.mixed_precision == "bf16"
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=mixed):
            return self.tokenizer.autoencoder.encoder(audio).float()

    @torch.no_grad()
    def quantized(
        self, audio: Float[Tensor, "B C N"], n_codebooks: list[int]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """Latents as they come out of each item's first n codebooks, and their noise level."""
        tokenizer = self.tokenizer
        quantized = [
            tokenizer.dequantize(tokenizer.quantize(z[None], n))
            for z, n in zip(self.exact(audio), n_codebooks, strict=True)
        ]
        levels = [tokenizer.noise_level(n) for n in n_codebooks]
        # Made under inference mode: autograd takes copies only.
        return torch.cat(quantized).clone(), torch.tensor(levels, device=audio.device)

    def draw(
        self, audio: Float[Tensor, "B C N"], items: list[torch.Generator]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """What the decoder is trained on: each item from its own number of codebooks."""
        high = self.tokenizer.num_codebooks
        low = min(self.finetune.min_codebooks, high)
        draws = [float(torch.rand((), generator=g)) for g in items]
        return self.quantized(audio, [round(low * (high / low) ** u) for u in draws])

    def inputs(
        self, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 D T"], Float[Tensor, " 1"]]]:
        """Named latents to validate on, and their noise levels: of some and of all codebooks."""
        del index
        for n in spread_numbers(self.tokenizer.num_codebooks):
            yield str(n), *self.quantized(audio, [n])

    def reconstruct(
        self,
        module: nn.Module,
        audio: Float[Tensor, "B C N"],
        items: list[torch.Generator],
        generator: torch.Generator,
    ) -> Reconstruction:
        """From what `draw` makes of each item."""
        del generator
        return Reconstruction(module(*self.draw(audio, items)))

    def estimates(
        self, module: nn.Module, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 C N2"]]]:
        """From all `inputs`."""
        for name, latents, levels in self.inputs(audio, index):
            yield name, module(latents, levels)


class ContinuousDecoderTask(DecoderTask):
    """The same on the encoder's latents under noise."""

    def draw(
        self, audio: Float[Tensor, "B C N"], items: list[torch.Generator]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """Latents, each item's under noise of its own level; some items' without detail."""
        latents, level = add_noise(self.exact(audio), self.config.noise_range, items)
        for z, generator in zip(latents, items, strict=True):
            if float(torch.rand((), generator=generator)) < self.finetune.coded_share:
                z[self.tokenizer.coded_dim :] = 0
        return latents, level

    def inputs(
        self, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 D T"], Float[Tensor, " 1"]]]:
        """Clean latents, under noise of 0.3, and without detail."""
        latents = self.exact(audio)
        for name, level in (("clean", 0.0), ("noisy", 0.3)):
            items = [torch.Generator().manual_seed(index)]
            yield name, *add_noise(latents, (level, level), items)
        if self.tokenizer.coded_dim < self.tokenizer.latent_dim:
            latents[:, self.tokenizer.coded_dim :] = 0
            yield "coded", latents, latents.new_zeros(1)


def finetune_decoder(
    tokenizer: LatentTokenizer,
    clips: list[Clip],
    out: Path,
    *,
    loop: CropTrainingConfig,
    losses: ReconstructionConfig,
    finetune: FinetuneConfig,
    augmentation: Augmentation,
    adversarial: AdversarialConfig | None = None,
    num_held_out: int = 16,
    progress: bool = True,
) -> None:
    """Gives a fitted tokenizer a finetuned decoder; resumes from ``out`` if it holds a checkpoint.

    Args:
        tokenizer: Changed in place; encoder, quantizer and the other decoder stay as they are. For
            the continuous decoder it need not be fitted.
        clips: Training audio.
        out: Folder of the run.
        loop: Steps, batches, learning rate.
        losses: Their weights.
        finetune: Which decoder, and on what.
        augmentation: Of the crops.
        adversarial: Weights of the adversarial losses; None trains without discriminators.
        num_held_out: Files kept for validation.
        progress: Whether to show a bar.
    """
    quantizer, coded = tokenizer.quantizer, tokenizer.autoencoder.without_detail()
    fitted = quantizer is not None and bool(quantizer.fitted)
    if finetune.decoder == "continuous":
        kind, decoder = ContinuousDecoderTask, tokenizer.autoencoder.decoder
    else:
        tokenizer.noise_level(1)  # raises if nothing is fitted
        if tokenizer.finetuned_decoder is None or not finetune.continue_finetuned:
            tokenizer.add_finetuned_decoder()
        kind, decoder = DecoderTask, tokenizer.finetuned_decoder
        assert decoder is not None
    crops = crop_datasets(
        clips,
        loop,
        sampling_rate=tokenizer.sampling_rate,
        augmentation=augmentation,
        # Other crops than stage 1 with the same seed.
        seed=loop.seed + 1_000_000,
        num_held_out=num_held_out,
    )
    adversary = make_adversary(adversarial, loop.mixed_precision, loop.seed)
    tokenizer.update_config()
    description = describe_run(
        clips,
        losses,
        augmentation,
        adversary,
        num_held_out,
        autoencoder=tokenizer.config.autoencoder,
        quantizer=tokenizer.config.quantizer,
        finetune=asdict(finetune),
        start=tokenizer.codes_fingerprint if fitted else weights_digest(coded.encoder),
    )
    home = tokenizer.device
    # Encoder and quantizer work beside the decoder.
    tokenizer.to(training_device())  # pyright: ignore[reportArgumentType]
    task = kind(tokenizer, decoder, crops, losses, finetune, loop, adversary)
    Trainer(task, loop, out, description=description, adversary=adversary, progress=progress).run()
    decoder.eval()
    tokenizer.to(home)  # pyright: ignore[reportArgumentType]
