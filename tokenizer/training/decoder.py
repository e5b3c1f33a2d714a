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
from tokenizer.training.autoencoder import (
    ReconstructionConfig,
    add_noise,
    reconstruction_losses,
)
from tokenizer.training.data import (
    Augmentation,
    Clip,
    CropDataset,
    crop_batches,
    crop_datasets,
    identity,
)
from tokenizer.training.loop import (
    LoopConfig,
    item_generators,
    num_processes,
    run,
    training_device,
)
from tokenizer.training.losses import MelDistance, waveform_distortion
from tokenizer.training.state import weights_digest


@dataclass(frozen=True)
class FinetuneConfig:
    """What the decoder is finetuned on.

    Attributes:
        decoder: "finetuned", the decoder of codes; or "continuous", that of latents, which is
            trained further for the encoder as it is, under the noise of
            `ReconstructionConfig.noise_range`.
        min_codebooks: For codes. Each crop is decoded from a number of codebooks drawn
            log-uniformly between this one and all, so that one decoder serves every rate.
        continue_finetuned: For codes. Whether to go on from an existing finetuned decoder instead
            of the continuous one.
        coded_share: For latents with detail. Share of the crops that are decoded without it, so
            that one decoder serves latents with detail and without.
    """

    decoder: str = "finetuned"
    min_codebooks: int = 2
    continue_finetuned: bool = False
    coded_share: float = 0.2

    def __post_init__(self) -> None:
        if self.decoder not in ("finetuned", "continuous"):
            raise InputError(f'decoder must be "finetuned" or "continuous", got {self.decoder!r}.')
        if self.decoder == "continuous" and self.continue_finetuned:
            raise InputError("continue_finetuned is for the finetuned decoder, not the continuous.")
        if not 0 <= self.coded_share <= 1:
            raise InputError(f"coded_share is a share, 0 to 1, got {self.coded_share:g}.")
        if self.min_codebooks < 1:
            raise InputError(f"min_codebooks must be at least 1, got {self.min_codebooks}.")


class DecoderTask:
    """Stage 3 as `tokenizer.training.loop.run` wants it."""

    def __init__(
        self,
        tokenizer: LatentTokenizer,
        decoder: nn.Module,
        train: CropDataset,
        held_out: CropDataset,
        losses: ReconstructionConfig,
        finetune: FinetuneConfig,
        loop: LoopConfig,
        adversary: Adversary | None = None,
    ) -> None:
        self.tokenizer, self.module = tokenizer, decoder
        self.train, self.held_out = train, held_out
        self.config, self.finetune, self.loop = losses, finetune, loop
        self.adversary = adversary
        self.mel = MelDistance(tokenizer.sampling_rate)

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

    @torch.no_grad()
    def exact(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """What the encoder makes of audio."""
        mixed = self.loop.mixed_precision == "bf16"
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

    def drawn(
        self, audio: Float[Tensor, "B C N"], items: list[torch.Generator]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """What the decoder is trained on: each item from its own number of codebooks."""
        high = self.tokenizer.num_codebooks
        low = min(self.finetune.min_codebooks, high)
        draws = [float(torch.rand((), generator=g)) for g in items]
        return self.quantized(audio, [round(low * (high / low) ** u) for u in draws])

    def judged(
        self, audio: Float[Tensor, "1 C N"], index: int
    ) -> Iterator[tuple[str, Float[Tensor, "1 D T"], Float[Tensor, " 1"]]]:
        """What it is judged on: 1/8, 5/12, 2/3 and all of the codebooks."""
        del index
        total = self.tokenizer.num_codebooks
        for n in sorted({max(1, round(total * share)) for share in (0.125, 0.4167, 0.6667, 1)}):
            yield str(n), *self.quantized(audio, [n])

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses of a batch."""
        audio, gain = batch["audio"], batch["gain"][:, None, None]
        joint = self.tokenizer.autoencoder.num_channels
        heard = audio.expand(-1, joint, -1)
        scale = gain if self.tokenizer.autoencoder.normalize else torch.ones_like(gain)
        latents, levels = self.drawn(heard / scale, item_generators(batch, generator))
        estimate = module(latents, levels)[..., : audio.shape[-1]].float()
        losses = reconstruction_losses(
            estimate * scale, heard, self.mel.sampling_rate, self.config, generator
        )
        if self.adversary is None:
            return losses
        return self.adversary.add(losses, estimate, heard / scale)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mel distance and SNR on held-out crops, of all that is `judged`."""
        sums: dict[str, float] = {}
        device = next(self.module.parameters()).device
        joint = self.tokenizer.autoencoder.num_channels
        for index in range(len(self.held_out)):
            item = {name: value.to(device)[None] for name, value in self.held_out[index].items()}
            audio, gain = item["audio"].expand(-1, joint, -1), item["gain"][:, None, None]
            scale = gain if self.tokenizer.autoencoder.normalize else torch.ones_like(gain)
            for name, latents, levels in self.judged(audio / scale, index):
                estimate = self.module(latents, levels)[..., : audio.shape[-1]] * scale
                mel = float(self.mel(estimate, audio))
                snr = -10 * float(waveform_distortion(estimate, audio))
                sums[f"mel_{name}"] = sums.get(f"mel_{name}", 0.0) + mel
                sums[f"snr_{name}"] = sums.get(f"snr_{name}", 0.0) + snr
        return {name: value / len(self.held_out) for name, value in sums.items()}


class ContinuousDecoderTask(DecoderTask):
    """The same on the encoder's latents under noise."""

    def drawn(
        self, audio: Float[Tensor, "B C N"], items: list[torch.Generator]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """Latents, each item's under noise of its own level; some items' without detail."""
        latents, level = add_noise(self.exact(audio), self.config.noise_range, items)
        for z, generator in zip(latents, items, strict=True):
            if float(torch.rand((), generator=generator)) < self.finetune.coded_share:
                z[self.tokenizer.coded_dim :] = 0
        return latents, level

    def judged(
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
    loop: LoopConfig,
    losses: ReconstructionConfig,
    finetune: FinetuneConfig,
    augmentation: Augmentation,
    adversarial: AdversarialConfig | None = None,
    num_held_out: int = 16,
    progress: bool = True,
) -> bool:
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

    Returns:
        Whether all steps are done.
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
    train, held_out = crop_datasets(
        clips,
        sampling_rate=tokenizer.sampling_rate,
        crop_seconds=loop.crop_seconds,
        augmentation=augmentation,
        # Other crops than stage 1 with the same seed.
        seed=loop.seed + 1_000_000,
        length=loop.steps * loop.batch_size * num_processes(),
        num_held_out=num_held_out,
    )
    adversary = make_adversary(adversarial, loop.mixed_precision, loop.seed)
    tokenizer.update_config()
    description = {
        "autoencoder": tokenizer.config.autoencoder,
        "quantizer": tokenizer.config.quantizer,
        "losses": asdict(losses),
        "adversarial": None if adversary is None else asdict(adversary.config),
        "finetune": asdict(finetune),
        "augmentation": asdict(augmentation),
        "clips": identity(clips),
        "held_out": num_held_out,
        "start": tokenizer.codes_fingerprint if fitted else weights_digest(coded.encoder),
    }
    home = tokenizer.device
    # Encoder and quantizer work beside the decoder.
    tokenizer.to(training_device())  # pyright: ignore[reportArgumentType]
    task = kind(tokenizer, decoder, train, held_out, losses, finetune, loop, adversary)
    done = run(task, loop, out, description=description, adversary=adversary, progress=progress)
    decoder.eval()
    tokenizer.to(home)  # pyright: ignore[reportArgumentType]
    return done
