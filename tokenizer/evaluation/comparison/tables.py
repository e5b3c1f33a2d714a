"""A comparison as Markdown."""

from __future__ import annotations

from typing import Any

from tokenizer.evaluation.comparison.measures import AUDIO_FIGURES
from tokenizer.evaluation.evaluate import STEREO, figure_table, occurring

# Of each column, which figure it shows and how.
QUALITY = {
    "quantizer": ("name", ""),
    "decoder": ("decoder", ""),
    "codebooks": ("n_codebooks", ""),
    "kbit/s": ("kbps", ",.2f"),
    "coded kbit/s": ("kbps_coded", ",.2f"),
    "distortion dB": ("distortion_db", ",.2f"),
    "SI-SDR dB": ("si_sdr", ",.2f"),
    "mel": ("mel", ",.3f"),
    "codes used": ("utilization", ".0%"),
    "bits/code": ("entropy", ",.2f"),
}
COST = {
    "quantizer": ("name", ""),
    "codebooks": ("n_codebooks", ""),
    "fit s": ("fit_seconds", ",.1f"),
    "fit MiB": ("peak_mib", ",.0f"),
    "finetune s": ("finetune_seconds", ",.0f"),
    "size MiB": ("size_mib", ",.2f"),
    "encode vectors/s": ("encode_vectors_per_second", ",.0f"),
    "decode vectors/s": ("decode_vectors_per_second", ",.0f"),
    "encode x": ("encode_x", ",.0f"),
    "decode x": ("decode_x", ",.0f"),
}


def entry_figures(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of an entry for each decoder at each rate, the highest rate first."""
    lines = []
    for decoder in ("continuous", "finetuned"):
        # The decoder of a model trained end to end is its own.
        own = entry["source"] == "also" and decoder == "continuous"
        head = {"name": entry["name"], "decoder": "own" if own else decoder}
        lines += [head | rate | rate[decoder] for rate in entry["rates"] if decoder in rate]
    return lines


def _cost(entry: dict[str, Any]) -> dict[str, Any]:
    """What fitting and running an entry costs, at its highest rate."""
    line, fits = entry_figures(entry)[0], entry.get("fits", [])
    if fits:
        line |= {
            "fit_seconds": sum(fit["seconds"] for fit in fits),
            "size_mib": fits[0]["size_mib"],
        }
    peaks = [fit["peak_mib"] for fit in fits if fit["peak_mib"] is not None]
    tuned = [fit["finetune_seconds"] for fit in fits if "finetune_seconds" in fit]
    return line | {"peak_mib": max(peaks, default=None), "finetune_seconds": sum(tuned) or None}


def comparison_markdown(result: dict[str, Any]) -> str:
    """The whole comparison, with what the columns mean."""
    held_out, train = result["held_out"], result["train"]
    exact = {"name": "continuous latents", "decoder": "continuous"} | {
        name: result["continuous"][name] for name in AUDIO_FIGURES if name in result["continuous"]
    }
    lines = [line for entry in result["entries"] for line in entry_figures(entry)]
    return f"""# Quantizers on one representation

Latents of `{result["model"]}` ({result["latent_dim"]} dimensions at {result["frame_rate"]:.2f} Hz).
Fitted to {train["clips"]} clips ({train["seconds"] / 60:.1f} minutes), measured on
{len(held_out["clips"])} others ({held_out["seconds"] / 60:.1f} minutes).

{figure_table([exact, *lines], QUALITY | occurring(STEREO, [exact, *lines]))}

Distortion is the squared error of held-out latents over their variance; models with latents of
their own have none that would compare. SI-SDR: higher is better; distortion and mel distance: lower
is better. "coded" is the rate after range coding with the tables of the fit. "bits/code" is the
entropy of the codes. Rates that a quantizer cannot serve are missing.

{figure_table([_cost(entry) for entry in result["entries"]], COST)}

Fitting excludes encoding the audio, which all share; where each rate has a quantizer of its own,
times are their sum. "fit MiB" is how far resident memory rose. "x" is times real time, the
autoencoder included. Sizes and speeds are those of the highest rate.
"""
