"""Rate-distortion curves of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.evaluation.comparison.tables import decoder_label, points
from tokenizer.saving import writing

METRICS = {
    "si_sdr": "SI-SDR, dB (higher is better)",
    "mel": "mel distance (lower is better)",
    "distortion_db": "latent distortion, dB (lower is better)",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: Okabe and Ito's, which colour-blind people can tell apart.

    Attributes:
        name: For file names.
        ink: Text and axes.
        grid: Grid lines.
        paper: Background; "none" for transparent.
        colours: Of the curves.
    """

    name: str
    ink: str
    grid: str
    paper: str
    colours: tuple[str, ...]

    def style(self, salt: str) -> dict[Any, Any]:
        """Matplotlib's settings; ``salt`` makes the names inside an SVG file reproducible."""
        ink = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
        settings = {"svg.hashsalt": salt, "font.size": 10, "axes.edgecolor": self.grid}
        return settings | dict.fromkeys(ink, self.ink)


LIGHT = Theme(
    "light", "#24292f", "#d8dee4", "none",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3a9bd5", "#555555"),
)  # fmt: skip
DARK = Theme(
    "dark", "#d7dce2", "#3a424c", "none",
    ("#56b4e9", "#ff8c42", "#2ec99a", "#e39ac4", "#f0e442", "#9cc9e8", "#b0b0b0"),
)  # fmt: skip
# Pictures that are not part of the page need a background.
PRINT = Theme("print", LIGHT.ink, LIGHT.grid, "white", LIGHT.colours)
MARKERS = "osD^vPX"


def curves(result: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """The lines of a picture: ``{"name", "decoder", "kbps", "values", "index"}``."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for index, entry in enumerate(result["entries"]):
        for rate, decoder, quality in points(entry):
            # The latents do not know which decoder will follow.
            if metric == "distortion_db" and decoder != "continuous":
                continue
            value = rate[metric] if metric == "distortion_db" else quality[metric]
            if value is None:
                continue
            label = decoder_label(entry, decoder)
            line = lines.setdefault(
                (entry["name"], label),
                {"name": entry["name"], "decoder": label, "kbps": [], "values": [], "index": index},
            )
            line["kbps"].append(rate["kbps"])
            line["values"].append(value)
    return list(lines.values())


def draw_curves(result: dict[str, Any], metric: str, path: Path, theme: Theme = PRINT) -> None:
    """Draws one metric against the bit rate, as PNG or SVG by the suffix.

    Continuous decoders have solid lines, finetuned ones dashed lines.

    Args:
        result: What `compare` returned.
        metric: A key of `METRICS`.
        path: The picture.
        theme: Its colours.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = curves(result, metric)
    with rc_context(theme.style(metric)):
        figure = Figure(figsize=(5.6, 3.6 + 0.2 * len(lines)), layout="constrained")
        figure.patch.set_facecolor(theme.paper)
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        for line in lines:
            colour = theme.colours[line["index"] % len(theme.colours)]
            suffix = "" if line["decoder"] == "continuous" else f", {line['decoder']} decoder"
            axes.plot(
                line["kbps"],
                line["values"],
                color=colour,
                linestyle="--" if line["decoder"] == "finetuned" else "-",
                marker=MARKERS[line["index"] % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                # A name is text, not mathematics.
                label=(line["name"] + suffix).replace("$", r"\$"),
            )
        if metric in result["continuous"]:
            axes.axhline(
                result["continuous"][metric],
                color=theme.ink,
                linewidth=1,
                linestyle=":",
                label="continuous latents",
            )
        axes.set_xlabel("kbit/s")
        axes.set_ylabel(METRICS[metric])
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:
            figure.legend(
                loc="outside lower center",
                ncols=1,
                frameon=False,
                fontsize=9,
                labelcolor=theme.ink,
            )
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else None
        with writing(path) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)
