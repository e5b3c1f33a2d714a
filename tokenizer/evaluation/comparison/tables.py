"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizer.evaluation.evaluate import as_table

DECODERS = ("continuous", "finetuned")


def points(entry: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Every (rate, decoder, what was quality) of an entry, the highest rate first."""
    for decoder in DECODERS:
        for rate in entry["rates"]:
            if decoder in rate:
                yield rate, decoder, rate[decoder]


def decoder_label(entry: dict[str, Any], decoder: str) -> str:
    """How tables call a decoder: that of a model trained end to end is its own."""
    return "own" if entry["source"] == "also" and decoder == "continuous" else decoder


def number(value: float | int | None, digits: int) -> str:
    """A figure as text; empty for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def quality_table(result: dict[str, Any]) -> str:
    """Rate, distortion, audio quality and use of codes of every entry at every rate."""
    header = [
        "quantizer", "decoder", "codebooks", "kbit/s", "coded kbit/s", "distortion dB",
        "SI-SDR dB", "mel", "codes used", "bits/code",
    ]  # fmt: skip
    exact = result["continuous"]
    rows = [["continuous latents", "continuous", "", "", "", "", number(exact["si_sdr"], 2),
             number(exact["mel"], 3), "", ""]]  # fmt: skip
    for entry in result["entries"]:
        for rate, decoder, quality in points(entry):
            rows.append(
                [
                    entry["name"],
                    decoder_label(entry, decoder),
                    str(rate["n_codebooks"]),
                    number(rate["kbps"], 2),
                    number(rate["kbps_coded"], 2),
                    number(rate["distortion_db"], 2),
                    number(quality["si_sdr"], 2),
                    number(quality["mel"], 3),
                    f"{rate['utilization']:.0%}",
                    number(rate["entropy"], 2),
                ]
            )
    return as_table(rows, header)


def cost_table(result: dict[str, Any]) -> str:
    """What fitting and running every entry costs, at its highest rate."""
    header = [
        "quantizer", "codebooks", "fit s", "fit MiB", "finetune s", "size MiB",
        "encode vectors/s", "decode vectors/s", "encode x", "decode x",
    ]  # fmt: skip
    rows = []
    for entry in result["entries"]:
        rate, _, quality = next(points(entry))
        fits = entry.get("fits", [])
        peaks = [fit["peak_mib"] for fit in fits if fit["peak_mib"] is not None]
        tuned = [fit["finetune_seconds"] for fit in fits if "finetune_seconds" in fit]
        rows.append(
            [
                entry["name"],
                str(rate["n_codebooks"]),
                number(sum(fit["seconds"] for fit in fits), 1) if fits else "",
                number(max(peaks), 0) if peaks else "",
                number(sum(tuned), 0) if tuned else "",
                number(fits[0]["size_mib"], 2) if fits else "",
                number(rate["encode_vectors_per_second"], 0),
                number(rate["decode_vectors_per_second"], 0),
                number(rate["encode_x"], 0),
                number(quality["decode_x"], 0),
            ]
        )
    return as_table(rows, header)


def comparison_markdown(result: dict[str, Any]) -> str:
    """The whole comparison, with what the columns mean."""
    held_out, train = result["held_out"], result["train"]
    return f"""# Quantizers on one representation

Latents of `{result["model"]}` ({result["latent_dim"]} dimensions at {result["frame_rate"]:.2f} Hz).
Fitted to {train["clips"]} clips ({train["seconds"] / 60:.1f} minutes), measured on
{len(held_out["clips"])} others ({held_out["seconds"] / 60:.1f} minutes).

{quality_table(result)}

Distortion is the squared error of held-out latents over their variance; models with latents of
their own have none that would compare. SI-SDR: higher is better; distortion and mel distance: lower
is better. "coded" is the rate after range coding with the tables of the fit. "bits/code" is the
entropy of the codes. Rates that a quantizer cannot serve are missing.

{cost_table(result)}

Fitting excludes encoding the audio, which all share; where each rate has a quantizer of its own,
times are their sum. "fit MiB" is how far resident memory rose. "x" is times real time, the
autoencoder included. Sizes and speeds are those of the highest rate.
"""
