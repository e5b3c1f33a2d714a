"""The tables of a report, as its inputs allow: a model, a comparison, other tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.errors import MissingFileError
from tokenizer.evaluation.comparison import Competitor
from tokenizer.evaluation.report.sounds import Way
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.parts import DecoderName


@dataclass(frozen=True)
class Column:
    """A column of a table: the two lines of its head, and how its sounds are made."""

    label: str
    note: str
    way: Way


@dataclass(frozen=True)
class Section:
    """A table: its anchor, heading, what to listen for, and columns, the original first."""

    key: str
    title: str
    text: str
    columns: tuple[Column, ...]


ORIGINAL = Column("original", "", Way())


def kbps(bitrate: float | int) -> str:
    """A rate in bit/s as text, in kbit/s."""
    return f"{bitrate / 1000:.3g} kbit/s"


def latents(path: str) -> Section:
    """A model without codes."""
    return Section(
        "latents",
        "Continuous latents",
        "What the autoencoder does. It has no quantizer, so there are no codes to listen to.",
        (ORIGINAL, Column("continuous", "no quantizer", Way(path))),
    )


def by_bitrate(tokenizer: LatentTokenizer, path: str, bitrates: Sequence[float | int]) -> Section:
    """The model at every rate."""
    columns = [
        Column(kbps(tokenizer.bitrate(n)), _books(n), Way(path, n, tokenizer.codes_decoder))
        for n in dict.fromkeys(map(tokenizer.codebooks_for, bitrates))
    ]
    return Section(
        "bitrate",
        "By bitrate",
        "One encoder, one set of codes: lower rates use the first codebooks only. “Continuous” is "
        "what the autoencoder does when nothing is quantized. Rates under the players are those of "
        "the code files.",
        (ORIGINAL, Column("continuous", "no quantizer", Way(path)), *columns),
    )


def finetuning(
    tokenizer: LatentTokenizer, path: str, bitrates: Sequence[float | int]
) -> Section | None:
    """The same codes through both decoders; None if there is only one."""
    if tokenizer.finetuned_decoder is None:
        return None
    columns = []
    names: tuple[DecoderName, ...] = ("continuous", "finetuned")
    for n in dict.fromkeys(map(tokenizer.codebooks_for, bitrates)):
        rate = kbps(tokenizer.bitrate(n))
        columns += [Column(rate, f"{name} decoder", Way(path, n, name)) for name in names]
    return Section(
        "finetuning",
        "Impact of finetuning",
        "The same codes, decoded twice: by the decoder trained on continuous latents, and by the "
        "one finetuned on quantized latents while encoder and quantizer were frozen.",
        (ORIGINAL, *columns),
    )


def standardization(
    comparison: dict[str, Any], folder: Path, bitrate: float | int
) -> Section | None:
    """Quantizers of a comparison that differ in standardization only; None if there are none."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in comparison["entries"]:
        if entry["source"] != "fitted" or entry["spec"]["kind"] != "rvq":
            continue
        rest = {k: v for k, v in entry["spec"].items() if k not in ("name", "standardization")}
        groups.setdefault(repr(sorted(rest.items())), []).append(entry)
    group = max(groups.values(), key=len, default=[])
    if len(group) < 2:
        return None
    tuned = all("finetuned_model" in fit for entry in group for fit in entry["fits"])
    labels = {"none": "none", "channel": "per channel (the paper's)", "decoder": "the decoder's"}
    columns = []
    for entry in group:
        mode = str(entry["spec"].get("standardization", "none"))
        way, rate = _at(entry, folder, bitrate, tuned)
        columns.append(Column(labels.get(mode, mode), kbps(1000 * rate["kbps"]), way))
    decoder = "each with a decoder finetuned for it" if tuned else "all with the continuous decoder"
    return Section(
        "standardization",
        "Standardization or not",
        f"Residual quantizers fitted to the same latents, {decoder}. They differ in how residuals "
        "are scaled before each codebook is fitted.",
        (ORIGINAL, *columns),
    )


def end_to_end(
    tokenizer: LatentTokenizer,
    path: str,
    others: Sequence[tuple[Competitor, LatentTokenizer]],
    bitrate: float | int,
) -> Section | None:
    """The model beside others; None if there are none."""
    if not others:
        return None
    columns = []
    for entry, model in ((Competitor("this model", path), tokenizer), *others):
        n = model.codebooks_for(bitrate)
        way = Way(entry.path, n, model.codes_decoder)
        columns.append(Column(entry.name, f"{kbps(model.bitrate(n))}, {_books(n)}", way))
    return Section(
        "end-to-end",
        "Comparison to end-to-end training",
        "A quantizer fitted afterwards against autoencoders that were trained with their quantizer "
        "in place.",
        (ORIGINAL, *columns),
    )


def _at(
    entry: dict[str, Any], folder: Path, bitrate: float | int, tuned: bool
) -> tuple[Way, dict[str, Any]]:
    """An entry of a comparison at its rate nearest to one."""
    rate = min(entry["rates"], key=lambda rate: abs(1000 * rate["kbps"] - bitrate))
    # Either one quantizer for all rates, or one for each.
    fits = [f for f in entry["fits"] if f["num_codebooks"] == rate["n_codebooks"]] or entry["fits"]
    path = folder / fits[0]["finetuned_model" if tuned else "model"]
    if not path.exists():
        raise MissingFileError(f"The comparison's tokenizer {path} is gone: run compare again.")
    return Way(str(path), rate["n_codebooks"], "finetuned" if tuned else "continuous"), rate


def _books(n: int) -> str:
    return f"{n} codebook" + ("s" if n > 1 else "")
