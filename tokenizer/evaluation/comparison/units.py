"""Pieces of work that survive a kill: each leaves one JSON file, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)


def unit(path: Path, asked: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Any:
    """The result of ``compute``, or that of an earlier run which was asked the same.

    Args:
        path: JSON file of the result.
        asked: All that the result depends on, as JSON values. Results of anything else are computed
            anew.
        compute: Does the work; what it leaves in other files must be complete when it returns.
    """
    asked = json.loads(json.dumps(asked))
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise InputError(f"{path} is damaged: remove it to compute it anew.") from None
        if not isinstance(stored, dict) or not {"asked", "found"} <= stored.keys():
            raise InputError(f"{path} is damaged: remove it to compute it anew.")
        if stored["asked"] == asked:
            return stored["found"]
    found = json.loads(json.dumps(compute()))
    write_json(path, {"asked": asked, "found": found})
    return found


class PeakMemory:
    """How far the resident memory of this process rises inside a ``with`` block.

    Attributes:
        mebibytes: The rise; None where the system does not tell (anything but Linux).
    """

    mebibytes: float | None = None

    def __enter__(self) -> PeakMemory:
        try:
            # Sets the high-water mark to what is in use now.
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self.mebibytes = max(0.0, _status("VmHWM") - self._before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(name + ":"))
    return int(kibibytes) / 1024
