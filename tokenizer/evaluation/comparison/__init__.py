"""Fair comparison of quantizers: one representation, equal rates, held-out audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizer.evaluation.comparison.plots import METRICS, draw_curves
from tokenizer.evaluation.comparison.runner import compare, read_comparison
from tokenizer.evaluation.comparison.specs import (
    CompareConfig,
    Competitor,
    QuantizerSpec,
    parse_spec,
    read_specs,
)
from tokenizer.evaluation.comparison.tables import comparison_markdown
from tokenizer.saving import write_text

__all__ = [
    "CompareConfig",
    "Competitor",
    "QuantizerSpec",
    "compare",
    "comparison_markdown",
    "parse_spec",
    "read_comparison",
    "read_specs",
    "write_summary",
]


def write_summary(result: dict[str, Any], out: Path) -> str:
    """Writes ``comparison.md`` and the curves into a comparison's folder; returns the Markdown."""
    text = comparison_markdown(result)
    pictures = []
    for metric, title in METRICS.items():
        draw_curves(result, metric, out / f"{metric}.png")
        pictures.append(f"![{title}, against kbit/s]({metric}.png)")
    write_text(out / "comparison.md", text + "\n" + "\n\n".join(pictures) + "\n")
    return text
