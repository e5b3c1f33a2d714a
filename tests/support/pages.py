"""A small report with all its tables, for the tests that read it and the one that opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import ENTRIES, RATE, make_tokenizer, tone

from tokenizer.audio import write_audio
from tokenizer.evaluation.comparison import CompareConfig, Competitor, compare, parse_spec
from tokenizer.evaluation.report import ReportConfig, build_report
from tokenizer.training.clips import scan
from tokenizer.training.quantizer import FitConfig

# As unpleasant as a file system allows: a name cannot hold "/".
NAMES = ("a <script>alert(1)<|script>.wav", 'it\'s 100% "quoted" & spaced #1?.wav', "größe 音.wav")
BITRATES = (1600, 400)


def make_page(root: Path) -> tuple[Path, dict[str, Any]]:
    """Writes audio, a model, a comparison and the report of them; returns its folder and result."""
    (root / "audio").mkdir()
    for seed, name in enumerate(NAMES):
        write_audio(root / "audio" / name, tone(1.0, channels=1 + seed % 2, seed=seed), RATE)
    make_tokenizer().save_pretrained(root / "model")
    make_tokenizer(standardization="channel").save_pretrained(root / "other")
    clips = scan(root / "audio")
    compare(
        root / "model",
        clips,
        clips,
        [parse_spec("rvq"), parse_spec("rvq:standardization=channel")],
        root / "comparison",
        CompareConfig(BITRATES, ENTRIES, FitConfig(segment_seconds=0.5)),
        also=[Competitor("E2E <b>(1)</b>", str(root / "other"))],
        progress=False,
    )
    page = root / "page"
    found = build_report(
        root / "model",
        clips,
        page,
        ReportConfig(BITRATES, focus=1600, title="<i>Title</i> & more"),
        comparison=root / "comparison",
        progress=False,
    )
    return page, found
