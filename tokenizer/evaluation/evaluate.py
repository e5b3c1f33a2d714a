"""`latok evaluate`: quality, real bit rate, use of codes and speed over a set of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.evaluation.coding import Coded, Condition, code_clip, read_clip, usual_bitrates
from tokenizer.evaluation.metrics import code_use, quality
from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.clips import Clip, short_names

# Of each column of a table, its figure and format.
COLUMNS = {
    "": ("name", ""),
    "SI-SDR dB": ("si_sdr", ".2f"),
    "mel": ("mel", ".3f"),
    "STFT": ("stft", ".2f"),
    "LSD dB": ("lsd", ".2f"),
    "buzz": ("buzz", ".2f"),
    "buzz excess": ("buzz_excess", ".2f"),
    "kbit/s": ("kbps", ".2f"),
    "encode x": ("encode_x", ".0f"),
    "decode x": ("decode_x", ".0f"),
    "codes used": ("utilization", ".0%"),
    "bits/code": ("entropy", ".2f"),
}

# Shown where some clip has them.
STEREO = {"mid dB": ("si_sdr_mid", ".2f"), "side dB": ("si_sdr_side", ".2f")}


def evaluate_clip(
    tokenizer: LatentTokenizer,
    clip: Clip,
    condition: Condition,
    perceptual: PerceptualMetrics | None = None,
) -> tuple[dict[str, float], Coded]:
    """Codes one clip; returns its metrics, without undefined ones, and the coded clip."""
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
    names = [name for name, _ in (COLUMNS | STEREO).values()]
    names += perceptual.names if perceptual is not None else ()
    results: dict[str, Any] = {}
    bar = tqdm(total=len(clips) * len(conditions), disable=not progress, unit="clip")
    for condition in conditions:
        per_clip, codes = [], []
        for clip, short in zip(clips, short_names(clips), strict=True):
            result, coded = evaluate_clip(tokenizer, clip, condition, perceptual)
            per_clip.append({"clip": short} | result)
            if coded.codes is not None:
                codes.append(coded.codes)
            bar.update()
        values = {name: [line[name] for line in per_clip if name in line] for name in names}
        means = {name: float(np.mean(each)) for name, each in values.items() if each}
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
    tokenizer: LatentTokenizer, bitrates: Sequence[float | int] | None = None
) -> list[Condition]:
    """Continuous latents, then each rate (bit/s) through the default decoder for codes.

    Without rates they are `usual_bitrates`.
    """
    conditions = [Condition(None, "continuous")]
    if tokenizer.quantizer is not None:
        rates = usual_bitrates(tokenizer) if bitrates is None else bitrates
        counts = [tokenizer.codebooks_for(rate) for rate in rates]
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


def figure_table(lines: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    """Figures by name as a Markdown table; each column has a figure and its format."""
    rows = [[cell(line, *column) for column in columns.values()] for line in lines]
    return as_table(rows, list(columns))


def evaluation_table(result: dict[str, Any]) -> str:
    """The means of `evaluate` as a Markdown table."""
    lines = [{"name": name} | each["mean"] for name, each in result["conditions"].items()]
    optional = STEREO | {m: (m, ".2f") for m in METRICS}
    return figure_table(lines, COLUMNS | occurring(optional, lines))


def occurring(
    columns: Mapping[str, tuple[str, str]], lines: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """The columns whose figure some line has."""
    return {k: v for k, v in columns.items() if any(v[0] in line for line in lines)}


def cell(values: Mapping[str, Any], name: str, form: str) -> str:
    """A value in a format; empty if there is no such value, or it is None."""
    value = values.get(name)
    return "" if value is None else format(value, form)
