"""Held-out audio, encoded once, and how well a quantizer codes it at every rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.evaluation.coding import best_of, decode_timed, encode_timed, read_clip
from tokenizer.evaluation.comparison.specs import bits
from tokenizer.evaluation.metrics import MelReference, code_counts, code_use, mid_and_side, si_sdr
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.parts import DecoderName
from tokenizer.model.rows import Row, code_dtype
from tokenizer.quantizers.base import Quantizer
from tokenizer.training.clips import Clip, short_names

# How many vectors speed is measured on.
_TIMED = 4096
# What `measure_audio` gives the means of, where clips have it.
AUDIO_FIGURES = ("si_sdr", "mel", "si_sdr_mid", "si_sdr_side")


@dataclass(frozen=True)
class HeldOut:
    """Held-out clips as one model's latents."""

    clips: tuple[Clip, ...]
    rows: tuple[Row, ...]
    seconds: float  # duration of all channels of all clips
    encode_seconds: float  # time that the encoder took for them

    @classmethod
    def encode(cls, tokenizer: LatentTokenizer, clips: Sequence[Clip]) -> HeldOut:
        """Encodes the clips one after another."""
        rows, seconds, encode_seconds = [], 0.0, 0.0
        for clip in clips:
            audio = read_clip(clip, tokenizer.sampling_rate)
            row, taken = encode_timed(tokenizer, audio)
            rows.append(row)
            encode_seconds += taken
            seconds += audio.size / tokenizer.sampling_rate
        return cls(tuple(clips), tuple(rows), seconds, encode_seconds)

    @property
    def frames(self) -> Float[Tensor, "M D"]:
        """All latent frames."""
        return torch.from_numpy(np.concatenate([row["latents"] for row in self.rows]))

    def split(self, codes: Int[np.ndarray, "M n"]) -> list[Row]:
        """The codes of `frames` as a row for each clip."""
        rows, start = [], 0
        for row in self.rows:
            stop = start + len(row["latents"])
            rest = {k: row[k] for k in ("num_samples", "num_channels", "gain")}
            rows.append({"codes": codes[start:stop]} | rest)
            start = stop
        return rows


@torch.no_grad()
def measure_codes(
    quantizer: Quantizer,
    held_out: HeldOut,
    counts: Sequence[int],
    frame_rate: float | int,
    *,
    same_latents: bool = True,
) -> tuple[dict[int, np.ndarray], list[dict[str, Any]], list[list[int]]]:
    """Quantizes held-out latents at every rate, and measures latents, codes and speed.

    ``counts`` are numbers of codebooks, most first. Without ``same_latents``, the latents are not
    those of the comparison: their distortion does not compare and is left out.

    Returns the codes ``[M, n]`` and the figures for each number of codebooks, and how often each
    code of each codebook occurred, with the most codebooks.
    """
    device = quantizer.fitted.device
    frames = held_out.frames[:, : quantizer.dim].to(device)
    deviation = float((frames - frames.mean(0)).double().square().sum())
    timed_frames = min(_TIMED, len(frames))
    sample = frames[torch.arange(timed_frames) * len(frames) // timed_frames]
    codes_by_count: dict[int, np.ndarray] = {}
    figures: list[dict[str, Any]] = []
    most = torch.zeros(0, 0, dtype=torch.int64)
    for n in counts:
        sizes = quantizer.codebook_sizes[:n]
        sample_codes = quantizer.encode(sample, n)
        calls = (
            lambda n=n: quantizer.encode(sample, n),
            lambda codes=sample_codes: quantizer.decode(codes),
        )
        encoding, decoding = (max(s, 1e-9) for s in best_of(calls, 1, str(device)))
        # Fewer codebooks need no search of their own where their codes are a prefix.
        prefix = bool(codes_by_count) and quantizer.prefix_codes
        codes = most[:, :n] if prefix else quantizer.encode(frames, n)
        most = most if codes_by_count else codes
        error = sum(
            float((x - quantizer.decode(c)).double().square().sum())
            for x, c in zip(frames.split(2**14), codes.split(2**14), strict=True)
        )
        array = codes.cpu().numpy().astype(code_dtype(quantizer.codebook_sizes))
        codes_by_count[n] = array
        ratio = error / deviation if deviation else 0.0
        figures.append(
            {
                "n_codebooks": n,
                "kbps": 1e-3 * frame_rate * bits(sizes),
                "kbps_coded": _coded_rate(quantizer, array, frame_rate),
                "distortion_db": 10 * float(np.log10(max(ratio, 1e-20))) if same_latents else None,
                "encode_vectors_per_second": len(sample) / encoding,
                "decode_vectors_per_second": len(sample) / decoding,
                "encode_x": held_out.seconds
                / (held_out.encode_seconds + encoding * len(frames) / len(sample)),
                **code_use(array, quantizer.codebook_sizes),
            }
        )
    return codes_by_count, figures, code_counts(most.cpu().numpy(), quantizer.codebook_sizes)


def _coded_rate(
    quantizer: Quantizer, codes: Int[np.ndarray, "M n"], frame_rate: float | int
) -> float | None:
    """kbit/s of `.ltk` files without headers: range-coded with the tables of the fit, or packed."""
    counts = getattr(quantizer, "code_counts", None)
    if counts is None or not int(counts.sum()):
        return None
    total = 0.0
    for k, column in enumerate(codes.T):
        size = quantizer.codebook_sizes[k]
        weights = counts[k, :size].cpu().numpy().astype(np.float64) + 1
        total += float(-np.log2(weights / weights.sum())[column].mean())
    return 1e-3 * frame_rate * min(total, bits(quantizer.codebook_sizes[: codes.shape[1]]))


def measure_audio(
    tokenizer: LatentTokenizer,
    held_out: HeldOut,
    codes: Mapping[int, np.ndarray] | None,
    decoder: DecoderName,
    *,
    advance: Callable[[], object] = lambda: None,
) -> dict[int, dict[str, Any]]:
    """Decodes held-out clips at every rate and compares them with the originals.

    ``codes`` are those of `measure_codes`, None for continuous latents, which count as 0 codebooks;
    ``advance`` is called after every clip. Returns for each number of codebooks ``{"si_sdr",
    "mel", "decode_x", "per_clip": [{"clip", "si_sdr", "mel"}, ...]}``, and of stereo what
    `mid_and_side` gives.
    """
    rows = {0: list(held_out.rows)}
    if codes is not None:
        rows = {n: held_out.split(array) for n, array in codes.items()}
    per_clip: dict[int, list[dict[str, Any]]] = {n: [] for n in rows}
    decode_seconds = dict.fromkeys(rows, 0.0)
    short = short_names(held_out.clips)
    for index, clip in enumerate(held_out.clips):
        original = torch.from_numpy(read_clip(clip, tokenizer.sampling_rate))
        reference = MelReference(original, tokenizer.sampling_rate)
        for n, all_rows in rows.items():
            audio, seconds = decode_timed(tokenizer, all_rows[index], decoder)
            decode_seconds[n] += seconds
            estimate = torch.from_numpy(audio)
            scores = {"si_sdr": si_sdr(estimate, original), "mel": reference.distance(estimate)}
            scores |= mid_and_side(estimate, original)
            per_clip[n].append({"clip": short[index]} | scores)
        advance()
    figures: dict[int, dict[str, Any]] = {}
    for n, clips in per_clip.items():
        values = {k: [c[k] for c in clips if k in c] for k in AUDIO_FIGURES}
        means = {k: float(np.mean(each)) for k, each in values.items() if each}
        speed = held_out.seconds / decode_seconds[n]
        figures[n] = means | {"decode_x": speed, "per_clip": clips}
    return figures
