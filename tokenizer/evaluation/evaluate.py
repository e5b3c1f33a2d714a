"""`latok evaluate`: quality, real bit rate, use of codes and speed over a set of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.evaluation.coding import Coded, Condition, code_clip, read_clip
from tokenizer.evaluation.metrics import code_use, quality
from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.data import Clip

# The columns of a table, and the digits that it prints of each.
COLUMNS = {
    "si_sdr": 2, "mel": 3, "stft": 2, "lsd": 2, "buzz": 2, "buzz_excess": 2, "kbps": 2,
    "encode_x": 0, "decode_x": 0,
}  # fmt: skip


def evaluate_clip(
    tokenizer: LatentTokenizer,
    clip: Clip,
    condition: Condition,
    perceptual: PerceptualMetrics | None = None,
) -> tuple[dict[str, float], Coded]:
    """Codes one clip and measures it.

    Returns:
        The metrics (`COLUMNS` and the perceptual ones; without those that are undefined for this
        clip), and the coded clip.
    """
    original = read_clip(clip, tokenizer.sampling_rate)
    coded = code_clip(tokenizer, original, condition)
    rate = tokenizer.sampling_rate
    result = quality(coded.audio, original, rate, hop_length=tokenizer.hop_length)
    if perceptual is not None:
        result |= perceptual(coded.audio, original, rate, clip.name)
    result |= {
        "kbps": coded.kbps,
        "encode_x": coded.seconds / coded.encode_seconds,
        "decode_x": coded.seconds / coded.decode_seconds,
        "seconds": coded.seconds,
    }
    return result, coded


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

    The mean of a metric is over the clips for which it is defined.

    Returns:
        JSON values: ``{"model": fingerprint, "clips": [...], "conditions": {name: {"mean": {...},
        "per_clip": [...]}}}``.
    """
    if not clips:
        raise InputError("No clips to evaluate.")
    names = (*COLUMNS, *(perceptual.names if perceptual is not None else ()))
    results: dict[str, Any] = {}
    bar = tqdm(total=len(clips) * len(conditions), disable=not progress, unit="clip")
    for condition in conditions:
        per_clip, codes = [], []
        for clip in clips:
            result, coded = evaluate_clip(tokenizer, clip, condition, perceptual)
            per_clip.append({"clip": Path(clip.name).name} | result)
            if coded.codes is not None:
                codes.append(coded.codes)
            bar.update()
        means = {name: float(np.mean(v)) for name in names if (v := _values(per_clip, name))}
        if codes:
            means |= code_use(np.concatenate(codes), tokenizer.codebook_sizes)
        results[condition.name] = {"mean": means, "per_clip": per_clip}
    bar.close()
    return {
        "model": tokenizer.fingerprint,
        "clips": [clip.name for clip in clips],
        "conditions": results,
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
        "", "SI-SDR dB", "mel", "STFT", "LSD dB", "buzz", "buzz excess", "kbit/s", "encode x",
        "decode x", "codes used", "bits/code",
    ]  # fmt: skip
    means = {name: condition["mean"] for name, condition in result["conditions"].items()}
    perceptual = [name for name in METRICS if any(name in mean for mean in means.values())]
    rows = [
        [
            name,
            *(cell(mean, column, f".{digits}f") for column, digits in COLUMNS.items()),
            cell(mean, "utilization", ".0%"),
            cell(mean, "entropy", ".2f"),
            *(cell(mean, metric, ".2f") for metric in perceptual),
        ]
        for name, mean in means.items()
    ]
    return as_table(rows, header + perceptual)


def cell(values: Mapping[str, float], name: str, form: str) -> str:
    """A value in a format; empty if there is no such value."""
    return format(values[name], form) if name in values else ""
