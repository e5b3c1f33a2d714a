"""Units of work that survive a kill: the result of each is stored as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tokenizer.errors import InputError
from tokenizer.saving import write_json

Result = TypeVar("Result")


def unit(path: Path, request: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> Any:
    """The result of ``compute``, or that of an earlier run with the same request.

    Args:
        path: JSON file of the result.
        request: All that the result depends on, as JSON values. The result of another request is
            computed again.
        compute: Does the work; other files that it writes must be complete when it returns.
    """
    request = json.loads(json.dumps(request))
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            old_request, result = stored["asked"], stored["found"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise InputError(f"{path} is damaged: remove it to compute it again.") from None
        if old_request == request:
            return result
    result = json.loads(json.dumps(compute()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"asked": request, "found": result})
    return result


def with_peak_memory(function: Callable[[], Result]) -> tuple[Result, float | None]:
    """Calls a function; returns its result and by how many MiB resident memory rose meanwhile.

    The rise is None where the system does not tell (anything but Linux).
    """
    try:
        # Sets the high-water mark to what is in use now.
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        return function(), None
    result = function()
    return result, max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(name + ":"))
    return int(kibibytes) / 1024
