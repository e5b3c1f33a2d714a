"""Stage 3: encoder and quantizer frozen, a decoder finetuned on quantized latents or exact ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.autoencoders.base import Decoder
from tokenizer.autoencoders.lapped.decoder import LappedDecoder
from tokenizer.devices import send
from tokenizer.errors import InputError
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.checkpoint import weights_digest
from tokenizer.training.clips import Clip
from tokenizer.training.config import check_fields
from tokenizer.training.processes import training_device
from tokenizer.training.reconstruction import (
    Audio,
    CropRun,
    PaddedAudio,
    Reconstruction,
    ReconstructionTask,
    add_noise,
    draw_uniform,
    noise_places,
    noise_unit,
    spread_numbers,
)

Latents = Float[Tensor, "B D T"]
Levels = Float[Tensor, " B"]


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
        noise_from: Lowest frequency, in Hz, at which a decoder of the bundled family that was
            trained without noise gets some. Below it, codes tell enough of the waveform.
    """

    decoder: str = "finetuned"
    min_codebooks: int = 2
    continue_finetuned: bool = False
    coded_share: float = 0.2
    noise_from: float = 4000.0

    def __post_init__(self) -> None:
        check_fields(
            self, coded_share=(0, 1), min_codebooks=(1, math.inf), noise_from=(0, math.inf)
        )
        if self.decoder not in ("finetuned", "continuous"):
            raise InputError(f'decoder must be "finetuned" or "continuous", got {self.decoder!r}.')
        if self.decoder == "continuous" and self.continue_finetuned:
            raise InputError("continue_finetuned is for the finetuned decoder, not the continuous.")


class TrainedDecoder(nn.Module):
    """A decoder whose ``forward`` is its `Decoder.parts`."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, latents: Latents, noise_level: Levels, first_frame: Int[Tensor, " B"]
    ) -> tuple[PaddedAudio, PaddedAudio]:
        """See `Decoder.parts`."""
        return self.decoder.parts(latents, noise_level, first_frame)


class DecoderTask(ReconstructionTask):
    """Stage 3: audio is decoded from the codes of each crop's own number of codebooks."""

    def __init__(
        self, tokenizer: LatentTokenizer, decoder: Decoder, finetune: FinetuneConfig, run: CropRun
    ) -> None:
        module = TrainedDecoder(decoder)
        # Other crops than stage 1 with the same seed.
        super().__init__(module, tokenizer.autoencoder, run, seed_offset=1_000_000)
        self.tokenizer, self.finetune = tokenizer, finetune

    @torch.no_grad()
    def exact(self, audio: Audio) -> Latents:
        """What the encoder makes of audio."""
        mixed = self.run.loop.mixed_precision == "bf16"
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=mixed):
            return self.tokenizer.autoencoder.encoder(audio).float()

    @torch.no_grad()
    def quantized(self, audio: Audio, n_codebooks: list[int]) -> tuple[Latents, Levels]:
        """Latents as they come out of each item's first n codebooks, and their noise level."""
        tokenizer = self.tokenizer
        codes = tokenizer.quantize_each(self.exact(audio), n_codebooks)
        assert tokenizer.quantizer is not None
        last = send(torch.tensor(n_codebooks) - 1, audio.device)
        levels = tokenizer.quantizer.noise_levels.to(audio.device)[last]
        # Made under inference mode: autograd takes copies only.
        return tokenizer.dequantize_each(codes).clone(), levels

    def draw(self, audio: Audio, items: list[Generator]) -> tuple[Latents, Levels]:
        """What the decoder is trained on: each item from its own number of codebooks."""
        high = self.tokenizer.num_codebooks
        low = min(self.finetune.min_codebooks, high)
        return self.quantized(audio, [round(low * (high / low) ** u) for u in draw_uniform(items)])

    def reconstruct(
        self, module: nn.Module, audio: Audio, items: list[Generator], generator: Generator
    ) -> Reconstruction:
        """From what `draw` makes of each item."""
        del generator
        latents, levels = self.draw(audio, items)
        return Reconstruction(module(latents, levels, noise_places(items, audio.device)))

    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """From some and from all codebooks."""
        for n in spread_numbers(self.tokenizer.num_codebooks):
            yield str(n), _audio(module, *self.quantized(audio, [n] * len(items)))


class ContinuousDecoderTask(DecoderTask):
    """The same on the encoder's latents under noise."""

    def noisy(
        self,
        latents: Latents,
        noise_range: tuple[float, float],
        items: list[Generator],
        *,
        alone: bool,
    ) -> tuple[Latents, Levels]:
        """See `add_noise` and `noise_unit`."""
        unit = noise_unit(self.tokenizer.autoencoder.encoder, latents, alone=alone)
        return add_noise(latents, noise_range, items, unit)

    def draw(self, audio: Audio, items: list[Generator]) -> tuple[Latents, Levels]:
        """Latents, each item's under noise of its own level; some items' without detail."""
        noise_range = self.run.losses.noise_range
        latents, level = self.noisy(self.exact(audio), noise_range, items, alone=False)
        for z, draw in zip(latents, draw_uniform(items), strict=True):
            if draw < self.finetune.coded_share:
                z[self.tokenizer.coded_dim :] = 0
        return latents, level

    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """From clean latents, under noise of 0.3, and without detail."""
        latents = self.exact(audio)
        yield "clean", _audio(module, latents, latents.new_zeros(len(items)))
        yield "noisy", _audio(module, *self.noisy(latents, (0.3, 0.3), items, alone=True))
        if self.tokenizer.coded_dim < self.tokenizer.latent_dim:
            latents[:, self.tokenizer.coded_dim :] = 0
            yield "coded", _audio(module, latents, latents.new_zeros(len(items)))


def _audio(module: nn.Module, latents: Latents, levels: Levels) -> PaddedAudio:
    """What a `TrainedDecoder` decodes from the beginning of a signal on."""
    return module(latents, levels, torch.zeros_like(levels, dtype=torch.int64))[0]


def finetune_decoder(
    tokenizer: LatentTokenizer,
    clips: list[Clip],
    out: Path,
    *,
    finetune: FinetuneConfig,
    **settings: Any,
) -> None:
    """Gives a fitted tokenizer a finetuned decoder; resumes from ``out`` if it holds a checkpoint.

    Args:
        tokenizer: Changed in place; encoder, quantizer and the other decoder stay as they are. For
            the continuous decoder it need not be fitted.
        clips: Training audio.
        out: Folder of the run.
        finetune: Which decoder, and on what.
        settings: The other attributes of `CropRun`.
    """
    quantizer, coded = tokenizer.quantizer, tokenizer.autoencoder.for_codes()
    fitted = quantizer is not None and bool(quantizer.fitted)
    if finetune.decoder == "continuous":
        kind, decoder = ContinuousDecoderTask, tokenizer.autoencoder.decoder
    else:
        tokenizer.noise_level(1)  # raises if nothing is fitted
        if tokenizer.finetuned_decoder is None or not finetune.continue_finetuned:
            tokenizer.add_finetuned_decoder()
        kind, decoder = DecoderTask, tokenizer.finetuned_decoder
        assert decoder is not None
    if isinstance(decoder, LappedDecoder):
        bins_per_hz = 2 * tokenizer.hop_length / tokenizer.sampling_rate
        decoder.open_noise(min(round(finetune.noise_from * bins_per_hz), tokenizer.hop_length))
    task = kind(tokenizer, decoder, finetune, CropRun(clips, out, **settings))
    tokenizer.update_config()
    start = tokenizer.codes_fingerprint if fitted else weights_digest(coded.encoder)
    home = tokenizer.device
    # Encoder and quantizer work beside the decoder.
    tokenizer.to(training_device())  # pyright: ignore[reportArgumentType]
    task.train(
        autoencoder=tokenizer.config.autoencoder,
        quantizer=tokenizer.config.quantizer,
        finetune=asdict(finetune),
        start=start,
    )
    decoder.eval()
    tokenizer.to(home)  # pyright: ignore[reportArgumentType]
