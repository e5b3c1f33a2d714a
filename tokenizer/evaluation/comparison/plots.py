"""Rate-distortion curves of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.evaluation.comparison.tables import entry_figures
from tokenizer.saving import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {
    "si_sdr": "SI-SDR, dB (higher is better)",
    "mel": "mel distance (lower is better)",
    "distortion_db": "latent distortion, dB (lower is better)",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: Okabe and Ito's, which colour-blind people can tell apart."""

    name: str
    ink: str  # text and axes
    grid: str
    paper: str  # "none" for transparent
    colours: tuple[str, ...]  # of the curves

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
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for index, entry in enumerate(result["entries"]):
        for point in entry_figures(entry):
            decoder = point["decoder"]
            # The latents do not know which decoder will follow.
            if point[metric] is None or (metric == "distortion_db" and decoder != "continuous"):
                continue
            line = {"name": entry["name"], "decoder": decoder, "kbps": [], "values": []}
            line = lines.setdefault((index, decoder), line | {"index": index})
            line["kbps"].append(point["kbps"])
            line["values"].append(point[metric])
    return list(lines.values())


@contextmanager
def themed_axes(path: Path, theme: Theme, size: tuple[float, float], salt: str) -> Iterator[Axes]:
    """Axes to draw into, which are then written as PNG or SVG, by the suffix."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kind = path.suffix.removeprefix(".")
    with rc_context(theme.style(salt)):
        figure = Figure(size, layout="constrained")
        figure.patch.set_facecolor(theme.paper)
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        yield axes
        metadata = {"Date": None} if kind == "svg" else None
        with writing(path) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


def draw_curves(result: dict[str, Any], metric: str, path: Path, theme: Theme = PRINT) -> None:
    """Draws one metric, a key of `METRICS`, against the bit rate, as PNG or SVG by the suffix.

    Continuous decoders have solid lines, finetuned ones dashed lines.
    """
    lines = curves(result, metric)
    with themed_axes(path, theme, (5.6, 3.6 + 0.2 * len(lines)), metric) as axes:
        for line in lines:
            suffix = "" if line["decoder"] == "continuous" else f", {line['decoder']} decoder"
            axes.plot(
                line["kbps"],
                line["values"],
                color=theme.colours[line["index"] % len(theme.colours)],
                linestyle="--" if line["decoder"] == "finetuned" else "-",
                marker=MARKERS[line["index"] % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                # A name is text, not mathematics.
                label=(line["name"] + suffix).replace("$", r"\$"),
            )
        if metric in result["continuous"]:
            exact, label = result["continuous"][metric], "continuous latents"
            axes.axhline(exact, color=theme.ink, linewidth=1, linestyle=":", label=label)
        axes.set(xlabel="kbit/s", ylabel=METRICS[metric], axisbelow=True)
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:
            axes.figure.legend(
                loc="outside lower center", frameon=False, fontsize=9, labelcolor=theme.ink
            )
