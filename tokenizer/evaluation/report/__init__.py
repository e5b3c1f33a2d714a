"""`latok report`: a page to listen to, made from any folder of audio."""

from __future__ import annotations

from tokenizer.evaluation.report.builder import ReportConfig, build_report

__all__ = ["ReportConfig", "build_report"]
