"""Fair comparison of quantizers: one representation, equal rates, held-out audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizer.evaluation.comparison.plots import METRICS, draw_curves
from tokenizer.evaluation.comparison.runner import compare, read_comparison
from tokenizer.evaluation.comparison.settings import CompareConfig, Competitor
from tokenizer.evaluation.comparison.specs import QuantizerSpec, parse_spec, read_specs
from tokenizer.evaluation.comparison.tables import comparison_markdown

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
    partial = out / "comparison.md.partial"
    partial.write_text(text + "\n" + "\n\n".join(pictures) + "\n", encoding="utf-8")
    partial.replace(out / "comparison.md")
    return text
