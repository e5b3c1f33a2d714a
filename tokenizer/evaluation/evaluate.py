"""`latok evaluate`: quality, real bit rate, use of codes and speed over a set of clips."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenizer.audio import open_audio
from tokenizer.errors import InputError
from tokenizer.evaluation.metrics import code_use, quality
from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics
from tokenizer.model.core import DecoderName
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.data import Clip
from tokenizer.transcoding.files import coded_size

COLUMNS = ("si_sdr", "mel", "stft", "lsd", "kbps", "encode_x", "decode_x")
DIGITS = (2, 3, 2, 2, 2, 0, 0)


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


def evaluate_clip(
    tokenizer: LatentTokenizer,
    clip: Clip,
    condition: Condition,
    perceptual: PerceptualMetrics | None = None,
) -> tuple[dict[str, float], np.ndarray, np.ndarray | None]:
    """Codes one clip and measures it.

    Returns:
        The metrics (`COLUMNS` and the perceptual ones), the reconstruction ``[C, N]`` and the codes
        ``[T, n]`` (None for continuous latents).
    """
    original = open_audio(clip.audio, target_rate=tokenizer.sampling_rate).read()
    seconds = original.shape[-1] / tokenizer.sampling_rate
    audio_in = {"array": original, "sampling_rate": tokenizer.sampling_rate}
    start = time.perf_counter()
    if condition.n_codebooks is None:
        row = tokenizer.encode_latents(audio_in)
        middle = time.perf_counter()
        audio = tokenizer.decode_latents(row, decoder=condition.decoder)
        end = time.perf_counter()
        codes, size = None, row["latents"].nbytes
    else:
        row = tokenizer.encode_codes(audio_in, n_codebooks=condition.n_codebooks)
        middle = time.perf_counter()
        audio = tokenizer.decode_codes(row, decoder=condition.decoder)
        end = time.perf_counter()
        codes, size = row["codes"], coded_size(row, tokenizer)
    result = quality(audio, original, tokenizer.sampling_rate)
    if perceptual is not None:
        result |= perceptual(audio, original, tokenizer.sampling_rate, clip.name)
    result |= {
        "kbps": 8e-3 * size / seconds,
        "encode_x": seconds / (middle - start),
        "decode_x": seconds / (end - middle),
        "seconds": seconds,
    }
    return result, audio, codes


def _values(per_clip: list[dict[str, Any]], name: str) -> list[float]:
    return [result[name] for result in per_clip if name in result]


def evaluate(
    tokenizer: LatentTokenizer,
    clips: Sequence[Clip],
    conditions: Sequence[Condition],
    *,
    perceptual: PerceptualMetrics | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures every clip under every condition.

    Means of a perceptual metric are over the clips that it applies to.

    Returns:
        JSON values: ``{"model": fingerprint, "clips": [...], "conditions": {name: {"mean": {...},
        "per_clip": [...]}}}``.
    """
    if not clips:
        raise InputError("No clips to evaluate.")
    found: dict[str, Any] = {}
    bar = tqdm(total=len(clips) * len(conditions), disable=not progress, unit="clip")
    for condition in conditions:
        per_clip, all_codes = [], []
        for clip in clips:
            result, _, codes = evaluate_clip(tokenizer, clip, condition, perceptual)
            per_clip.append({"clip": Path(clip.name).name} | result)
            if codes is not None:
                all_codes.append(codes)
            bar.update()
        names = COLUMNS + (perceptual.names if perceptual is not None else ())
        means = {name: float(np.mean(v)) for name in names if (v := _values(per_clip, name))}
        if all_codes:
            means |= code_use(np.concatenate(all_codes), tokenizer.codebook_sizes)
        found[condition.name] = {"mean": means, "per_clip": per_clip}
    bar.close()
    return {
        "model": tokenizer.fingerprint,
        "clips": [clip.name for clip in clips],
        "conditions": found,
    }


def default_conditions(
    tokenizer: LatentTokenizer, bitrates: Sequence[float | int]
) -> list[Condition]:
    """Continuous latents, then each rate (bit/s) through the default decoder for codes."""
    conditions = [Condition(None, "continuous")]
    if tokenizer.quantizer is not None:
        counts = [tokenizer.codebooks_for(rate) for rate in bitrates]
        conditions += [Condition(n, tokenizer.codes_decoder) for n in dict.fromkeys(counts)]
    return conditions


def as_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def evaluation_table(result: dict[str, Any]) -> str:
    """The means of `evaluate` as a Markdown table."""
    header = [
        "", "SI-SDR dB", "mel", "STFT", "LSD dB", "kbit/s", "encode x", "decode x",
        "codes used", "bits/code",
    ]  # fmt: skip
    means = [found["mean"] for found in result["conditions"].values()]
    perceptual = [name for name in METRICS if any(name in mean for mean in means)]
    header += perceptual
    rows = []
    for name, found in result["conditions"].items():
        m = found["mean"]
        used = f"{m['utilization']:.0%}" if "utilization" in m else ""
        bits = f"{m['entropy']:.2f}" if "entropy" in m else ""
        rows.append(
            [name]
            + [f"{m[key]:.{digits}f}" for key, digits in zip(COLUMNS, DIGITS, strict=True)]
            + [used, bits]
            + [f"{m[metric]:.2f}" if metric in m else "" for metric in perceptual]
        )
    return as_table(rows, header)
