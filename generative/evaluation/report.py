"""One static HTML page of generated clips: players, spectrograms, figures.

It loads nothing. Sound and pictures are part of the page, so it can be sent as a single file.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizer.errors import MissingFileError
from tokenizer.evaluation.report.pages import page_environment
from tokenizer.saving import write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(
    out: Path,
    folders: Sequence[str | Path],
    *,
    runs: Sequence[str | Path] = (),
    evaluations: Sequence[str | Path] = (),
    title: str = "Generated audio",
) -> None:
    """Writes the page.

    Args:
        out: The HTML file.
        folders: Folders of clips as `generative.runs.generation.save_clips` writes them, one
            section each.
        runs: Folders of training runs, whose loss curves are shown.
        evaluations: JSON files of ``python -m generative evaluate``.
        title: Of the page.

    Raises:
        FileNotFoundError: If a folder holds no ``samples.json``, or a file is missing.
    """
    template = page_environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    sections = [_clips_section(Path(folder)) for folder in folders]
    sections += [_run_section(Path(run)) for run in runs]
    for path in map(Path, evaluations):
        facts = _flatten(json.loads(path.read_text()))
        sections.append(_section(f"Evaluation: {path.stem}", facts=facts))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, template.render(title=title, sections=sections))


def _section(title: str, **parts: Any) -> dict[str, Any]:
    return {"title": title, "facts": [], "curve": None, "clips": []} | parts


def _clips_section(folder: Path) -> dict[str, Any]:
    path = folder / "samples.json"
    if not path.exists():
        raise MissingFileError(f"{folder} holds no {path.name}: no clips were generated there.")
    content = json.loads(path.read_text())
    facts = _flatten({k: v for k, v in content.items() if not isinstance(v, dict)})
    clips = [
        {
            "text": entry["caption"] or entry["label"] or entry["audio"],
            "audio": _sound(folder / entry["audio"]),
            "picture": _picture(folder / entry["picture"]) if entry["picture"] else None,
        }
        for entry in content["samples"]
    ]
    return _section(str(content.get("title", folder.name)), facts=facts, clips=clips)


def _run_section(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    facts = _flatten({k: v for k, v in last.items() if k == "step" or k.startswith("val/")})
    curve = run / "curves.png"
    picture = _picture(curve) if curve.exists() else None
    return _section(f"Training: {run.name}", facts=facts, curve=picture)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            facts += _flatten(value, f"{prefix}{name} / ")
        elif not isinstance(value, list):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            facts.append((prefix + name, shown))
    return facts


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(path: Path) -> str:
    return _data(path.read_bytes(), "image/png")


def _sound(path: Path) -> str:
    """As FLAC, which every browser plays, at half the size of WAV."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    return _data(stream.getvalue(), "audio/flac")
