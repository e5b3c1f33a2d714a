"""Puts a report together: sounds, pictures, curves, and the page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tokenizer.errors import ExistingFileError, InputError
from tokenizer.evaluation.coding import usual_bitrates
from tokenizer.evaluation.comparison import Competitor, read_comparison
from tokenizer.evaluation.comparison.plots import DARK, LIGHT, METRICS, draw_curves
from tokenizer.evaluation.comparison.runner import load_beside
from tokenizer.evaluation.comparison.tables import entry_figures
from tokenizer.evaluation.report.pages import page_environment
from tokenizer.evaluation.report.pictures import HEIGHT, RANGE_DB, WIDTH, draw_code_use
from tokenizer.evaluation.report.sections import (
    Section,
    by_bitrate,
    end_to_end,
    finetuning,
    latents,
    standardization,
)
from tokenizer.evaluation.report.sounds import Sounds, make_sounds
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.loading import BUNDLED, load_tokenizer
from tokenizer.saving import write_json, write_text, writing_folder
from tokenizer.training.clips import Clip

_MARK = "report.json"
_FOCUS = 16_000  # bit/s


@dataclass(frozen=True)
class ReportConfig:
    """What a report shows.

    Attributes:
        bitrates: Rates in bit/s of the first table. Default: `usual_bitrates` of the tokenizer.
        focus: The rate of all other tables. Default: 16,000, or the lowest of a tokenizer above it.
        seconds: Longer clips are cut.
        title: Of the page.
    """

    bitrates: tuple[float | int, ...] | None = None
    focus: float | int | None = None
    seconds: float | int = 10
    title: str = "Latent Tokenizer: listening page"

    def __post_init__(self) -> None:
        rates = () if self.bitrates is None else self.bitrates
        numbers = [*rates, self.seconds, *(() if self.focus is None else (self.focus,))]
        if self.bitrates == () or min(numbers) <= 0:
            raise InputError(f"Rates and seconds must be positive: {self}.")

    def rates(self, tokenizer: LatentTokenizer) -> tuple[Sequence[float | int], float | int]:
        """The rates of the first table, and that of the others, of a tokenizer with codes."""
        bitrates = usual_bitrates(tokenizer) if self.bitrates is None else self.bitrates
        return bitrates, max(_FOCUS, tokenizer.bitrate(1)) if self.focus is None else self.focus


def build_report(
    model: str | Path | None,
    clips: Sequence[Clip],
    out: Path,
    config: ReportConfig,
    *,
    comparison: Path | None = None,
    end_to_end_models: Sequence[Competitor] = (),
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Writes a folder with ``index.html`` and all it needs; it opens from disk.

    Args:
        model: A tokenizer; None for the bundled one. Without a quantizer, the page has no codes.
        clips: What to listen to.
        out: A new folder, or one with an earlier report, which is replaced as a whole.
        config: What to show.
        comparison: Folder of `latok compare`, for curves and the tables of other quantizers.
        end_to_end_models: Tokenizers trained end to end, besides those in the comparison.
        device: Where to compute.
        progress: Whether to show a bar.

    Returns:
        What is in ``report.json``: every table with its figures, and ``bytes``, the folder's size.

    Raises:
        ImportError: If jinja2 is not installed.
        FileExistsError: If ``out`` holds something else.
    """
    environment = page_environment()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MARK).exists())):
        raise ExistingFileError(f"{out} exists and is no earlier report: name another folder.")
    path = str(BUNDLED if model is None else model)
    tokenizer = load_tokenizer(path)
    compared = None if comparison is None else read_comparison(comparison)
    sections = _sections(tokenizer, path, config, compared, comparison, end_to_end_models)
    ways = list(dict.fromkeys(c.way for section in sections for c in section.columns))
    with writing_folder(out) as folder:
        total = len(ways) * len(clips)
        rate = tokenizer.sampling_rate
        with tqdm(total=total, desc="sounds", unit="sound", disable=not progress) as bar:
            sounds = make_sounds(clips, ways, folder, rate, config.seconds, device, bar.update)
        curve_data = compared or _of_this_page(sounds, sections[0])
        figures = [
            line | {"heard": _where_heard(entry, sections, path, comparison)}
            for entry in curve_data["entries"]
            for line in entry_figures(entry)
        ]
        tables = [_table(section, sounds) for section in sections]
        page = environment.get_template("page.html.j2").render(
            title=config.title,
            facts=_facts(tokenizer, path),
            tables=tables,
            curves=_curves(curve_data, figures, folder),
            figures=figures,
            held_out=None if compared is None else compared["held_out"],
            heatmaps=_heatmaps(sounds, sections[0], compared, folder),
            picture={"width": WIDTH, "height": HEIGHT, "range": RANGE_DB},
            top=f"{tokenizer.sampling_rate / 2000:g} kHz",
        )
        write_text(folder / "index.html", page)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        content = {"model": path, "fingerprint": tokenizer.fingerprint, "clips": sounds.names}
        content |= {"tables": tables, "bytes": size}
        write_json(folder / _MARK, content)
    return content


def _sections(
    tokenizer: LatentTokenizer,
    path: str,
    config: ReportConfig,
    compared: dict[str, Any] | None,
    folder: Path | None,
    others: Sequence[Competitor],
) -> list[Section]:
    focus = config.focus or _FOCUS
    if tokenizer.quantizer is None:
        sections: list[Section | None] = [latents(path)]
    else:
        bitrates, focus = config.rates(tokenizer)
        sections = [by_bitrate(tokenizer, path, bitrates)]
        rates = list(dict.fromkeys((focus, min(bitrates))))
        sections.append(finetuning(tokenizer, path, rates))
    competitors = list(others)
    if compared is not None and folder is not None:
        if (rate := compared["sampling_rate"]) != tokenizer.sampling_rate:
            raise InputError(
                f"The comparison is at {rate} Hz, the model at {tokenizer.sampling_rate} Hz: "
                "they do not fit on one page."
            )
        sections.append(standardization(compared, folder, focus))
        names = {other.name for other in others}
        competitors += [
            Competitor(entry["name"], entry["model"])
            for entry in compared["entries"]
            if entry["source"] == "also" and entry["name"] not in names
        ]
    # This model itself is in the table anyway.
    models = [(other, load_beside(other, tokenizer)) for other in competitors]
    models = [(o, m) for o, m in models if m.fingerprint != tokenizer.fingerprint]
    sections.append(end_to_end(tokenizer, path, models, focus))
    return [section for section in sections if section is not None]


def _facts(tokenizer: LatentTokenizer, path: str) -> list[tuple[str, str]]:
    codes = "none"
    if tokenizer.quantizer is not None:
        entries = " or ".join(f"{size:,}" for size in sorted(set(tokenizer.codebook_sizes)))
        codes = f"{tokenizer.num_codebooks} codebooks of {entries} entries"
    return [
        ("model", "bundled" if path == str(BUNDLED) else path),
        ("fingerprint", tokenizer.fingerprint),
        ("audio", f"{tokenizer.sampling_rate / 1000:g} kHz"),
        ("latents", f"{tokenizer.latent_dim} dimensions at {tokenizer.frame_rate:.4g} Hz"),
        ("codes", codes),
    ]


def _table(section: Section, sounds: Sounds) -> dict[str, Any]:
    """A section with its figures, as the template and ``report.json`` want it."""
    columns = [{"label": c.label, "note": c.note} for c in section.columns]
    rows = []
    for clip, name in enumerate(sounds.names):
        cells = [vars(sounds.by_way[c.way][clip]) for c in section.columns]
        rows.append({"name": name, "seconds": sounds.seconds[clip], "cells": cells})
    means = [sounds.means(c.way) for c in section.columns]
    return vars(section) | {"columns": columns, "rows": rows, "means": means}


def _where_heard(
    entry: dict[str, Any], sections: list[Section], path: str, folder: Path | None
) -> str | None:
    """The anchor of the first table that has sounds of an entry's tokenizers; None if none has."""
    fits = [
        str((folder or Path()) / fit[name])
        for fit in entry.get("fits", [])
        for name in ("model", "finetuned_model")
        if name in fit
    ]
    models = set(fits or [entry.get("model", path)])
    return next((s.key for s in sections if models & {c.way.tokenizer for c in s.columns}), None)


def _of_this_page(sounds: Sounds, section: Section) -> dict[str, Any]:
    """The first table as a comparison of one entry, for curves where there is no comparison."""
    exact, *ways = [column.way for column in section.columns[1:]]
    rates = [
        sounds.code_use[way] | {"distortion_db": None, way.decoder: sounds.means(way)}
        for way in ways
    ]
    entry = {"name": "this model", "source": "fitted", "rates": rates}
    return {"continuous": sounds.means(exact), "entries": [entry]}


def _curves(
    result: dict[str, Any], figures: list[dict[str, Any]], out: Path
) -> list[dict[str, str]]:
    pictures = []
    for metric, title in METRICS.items():
        if not any(figure[metric] is not None for figure in figures):
            continue
        for theme in (LIGHT, DARK):
            draw_curves(result, metric, out / "pictures" / f"{metric}-{theme.name}.svg", theme)
        pictures.append({"file": f"pictures/{metric}", "title": title})
    return pictures


def _heatmaps(
    sounds: Sounds, section: Section, compared: dict[str, Any] | None, out: Path
) -> list[dict[str, str]]:
    """This model's codebooks on this page's clips, and those of a comparison."""
    ways = [column.way for column in section.columns[2:3]]
    books = [("this model, on the clips of this page", sounds.code_counts[way]) for way in ways]
    for entry in compared["entries"] if compared else []:
        books.append((f"{entry['name']}, on the comparison's clips", entry["code_counts"]))
    pictures = []
    for index, (name, counts) in enumerate(books):
        for theme in (LIGHT, DARK):
            draw_code_use(counts, out / "pictures" / f"codes-{index}-{theme.name}.svg", theme)
        used = [sum(n > 0 for n in book) / len(book) for book in counts]
        share = f"{min(used):.0%} to {max(used):.0%} of their entries occur"
        picture = {"file": f"pictures/codes-{index}", "title": name}
        pictures.append(picture | {"text": f"{len(counts)} codebooks; {share}"})
    return pictures
