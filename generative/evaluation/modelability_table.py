"""The figures of `generative.evaluation.modelability` as a table."""

from __future__ import annotations

from typing import Any

from tokenizer.evaluation.evaluate import figure_table, occurring
from tokenizer.evaluation.perceptual import METRICS

# Of each column, its figure and format.
_COLUMNS = {
    "tokenizer": ("name", ""),
    "model": ("family", ""),
    "codebooks": ("codebooks", ""),
    "kbit/s": ("kbps", ".2f"),
    "static": ("static_kbps", ".2f"),
    "under the model": ("lm_kbps", ".2f"),
    "Fréchet": ("generated", ".1f"),
    "reconstructions": ("reconstructed", ".1f"),
    "floor": ("floor", ".1f"),
    "class": ("agreement", ".0%"),
    "Vendi": ("diversity", ".1f"),
    "of real": ("real_diversity", ".1f"),
    "steps": ("steps", ""),
    "steps/s": ("steps_per_second", ".2f"),
    "GMAC a second": ("gmac_per_second", ".2f"),
    "mel": ("mel", ".3f"),
    "LSD dB": ("lsd", ".2f"),
    "buzz": ("buzz", ".2f"),
}


def modelability_table(result: dict[str, Any]) -> str:
    """The entries as a Markdown table, and what its columns mean."""
    lines = [_line(entry) for entry in result["entries"]]
    optional = {name: (name, ".2f") for name in METRICS}
    config = result["config"]
    return f"""{figure_table(lines, _COLUMNS | occurring(optional, lines))}

Each model was trained for {config["minutes"]:g} minutes and generated {config["clips"]} clips of
{config["seconds"]:g} s. kbit/s: of the codes, nominal, under a static entropy code and under the
language model, on held-out recordings. Fréchet: distance from original recordings of what the model
generates, of the recordings' own reconstructions and, as a floor, of other recordings; in
statistics of log mel spectra, in sets of equal size. Class: generated clips that a classifier of
real ones finds to be of the class requested. Vendi: effective number of different segments.
GMAC: multiply-additions to generate a second of audio, guidance and solver steps included. mel,
LSD, buzz and the rest: reconstructions, which no model can exceed."""


def _line(entry: dict[str, Any]) -> dict[str, Any]:
    vendi = {"diversity": entry["vendi"]["generated"], "real_diversity": entry["vendi"]["real"]}
    return (
        entry
        | entry["frechet"]
        | entry["quality"]
        | vendi
        | (entry["classes"] or {})
        | {"kbps": entry["kbps"]}
    )
