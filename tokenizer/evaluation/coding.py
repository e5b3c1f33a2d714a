"""One clip through a tokenizer: encoded, decoded, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from tokenizer.audio import open_audio
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.parts import DecoderName
from tokenizer.model.rows import Row
from tokenizer.training.clips import Clip
from tokenizer.transcoding.files import coded_size

Result = TypeVar("Result")

# Rates in bit/s and channel that are measured and heard where no others are named.
BITRATES = (24_000, 16_000, 10_000, 3_000)


def usual_bitrates(tokenizer: LatentTokenizer) -> list[float]:
    """Rates of a tokenizer in bit/s, highest first: each the nearest one up to one of `BITRATES`.

    Rates below its first codebook are left out, and if all are, that of the first codebook remains.
    """
    lowest = tokenizer.bitrate(1)
    counts = [tokenizer.codebooks_for(rate) for rate in BITRATES if rate >= lowest]
    return [tokenizer.bitrate(n) for n in dict.fromkeys(counts or [1])]


@dataclass(frozen=True)
class Condition:
    """One way through the tokenizer.

    Attributes:
        n_codebooks: How many codebooks; None for continuous latents.
        decoder: Which decoder.
    """

    n_codebooks: int | None
    decoder: DecoderName

    @property
    def name(self) -> str:
        """For tables, e.g. "16 codebooks" or "continuous"."""
        if self.n_codebooks is None:
            return "continuous" if self.decoder == "continuous" else f"latents, {self.decoder}"
        suffix = "" if self.decoder == "finetuned" else f", {self.decoder} decoder"
        return f"{self.n_codebooks} codebooks{suffix}"


@dataclass(frozen=True)
class Coded:
    """A clip that was encoded, in ``encode_seconds``, and decoded, in ``decode_seconds``."""

    row: Row
    audio: Float[np.ndarray, "C N"]  # the reconstruction
    num_bytes: int  # of the .ltk file, headers included, or of the latents in memory
    seconds: float  # duration of the clip
    encode_seconds: float
    decode_seconds: float

    @property
    def codes(self) -> Int[np.ndarray, "T K"] | None:
        """The codes; None for continuous latents."""
        return self.row.get("codes")

    @property
    def kbps(self) -> float:
        """Size over duration in kbit/s."""
        return 8e-3 * self.num_bytes / self.seconds


def read_clip(clip: Clip, sampling_rate: int) -> Float[np.ndarray, "C N"]:
    """Reads a whole clip, resampled to ``sampling_rate`` Hz."""
    return open_audio(clip.audio, target_rate=sampling_rate).read()


def encode_timed(
    tokenizer: LatentTokenizer, audio: Float[np.ndarray, "C N"], n_codebooks: int | None = None
) -> tuple[Row, float]:
    """Encodes audio at the tokenizer's rate; returns the row and the seconds that it took.

    Without a number of codebooks, the row holds continuous latents.
    """
    clip = {"array": audio, "sampling_rate": tokenizer.sampling_rate}
    if n_codebooks is None:
        return timed(lambda: tokenizer.encode_latents(clip))
    return timed(lambda: tokenizer.encode_codes(clip, n_codebooks=n_codebooks))


def decode_timed(
    tokenizer: LatentTokenizer, row: Row, decoder: DecoderName
) -> tuple[Float[np.ndarray, "C N"], float]:
    """Decodes a row of codes or latents; returns the audio and the seconds that it took."""
    decode = tokenizer.decode_codes if "codes" in row else tokenizer.decode_latents
    return timed(lambda: decode(row, decoder=decoder))


def code_clip(
    tokenizer: LatentTokenizer, audio: Float[np.ndarray, "C N"], condition: Condition
) -> Coded:
    """Encodes and decodes audio at the tokenizer's rate."""
    row, encode_seconds = encode_timed(tokenizer, audio, condition.n_codebooks)
    return decode_row(tokenizer, row, condition.decoder, encode_seconds)


def decode_row(
    tokenizer: LatentTokenizer, row: Row, decoder: DecoderName, encode_seconds: float = 0.0
) -> Coded:
    """Decodes a row that took ``encode_seconds`` to encode."""
    audio, decode_seconds = decode_timed(tokenizer, row, decoder)
    num_bytes = coded_size(row, tokenizer) if "codes" in row else row["latents"].nbytes
    seconds = audio.shape[-1] / tokenizer.sampling_rate
    return Coded(row, audio, num_bytes, seconds, encode_seconds, decode_seconds)


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """Calls a function; returns its result and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def best_of(
    calls: Sequence[Callable[[], object]], repetitions: int, device: str = "cpu"
) -> list[float]:
    """Seconds of the fastest run of each call.

    The calls take turns, so that a slow moment of the machine meets all of them.
    """
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(repetitions):
        for i, call in enumerate(calls):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def synchronize(device: str) -> None:
    """Waits for what was launched on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
