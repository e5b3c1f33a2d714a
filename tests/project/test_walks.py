"""A clip passes the rooms that docs/architecture.md names, each called from where it says."""

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from models import RATE, tone

from tokenizer import write_audio
from tokenizer.cli import main

ROOT = Path(__file__).parents[2]
# What every room may use is on no walk.
SERVICES = {
    "errors",
    "command",
    "devices",
    "precision",
    "__init__",
    "_clash",
    "_moved",
    "_registering",
}


def room(frame: FrameType) -> str | None:
    """The room of the tokenizer whose code a frame runs."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT / "tokenizer"):
        return None
    name = path.relative_to(ROOT / "tokenizer").parts[0].removesuffix(".py")
    return None if name in SERVICES else name


def walk(run: Callable[[], Any]) -> set[tuple[str, str]]:
    """Which room calls which while something runs, in all threads: (caller or "you", called)."""
    calls = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        called = room(frame) if event == "call" and frame.f_code.co_name != "<module>" else None
        if called is None:
            return
        above, back = [], frame.f_back
        while back is not None:
            above += [name for name in [room(back)] if name]
            back = back.f_back
        # What a room above hands down to be called back is no new way into it.
        if called not in above:
            calls.add((above[0] if above else "you", called))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    return calls


def documented(title: str) -> set[tuple[str, str]]:
    """The calls that the table of a section of docs/architecture.md lists."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, flags=re.M)
    return {(caller.strip("` "), name) for name, callers in rows for caller in callers.split(",")}


def test_a_clip_that_is_encoded_passes_no_room_twice(tokenizer, tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0), RATE)
    tokenizer.encode_codes(tmp_path / "a.wav")  # compiles and tries what it does once
    passed = walk(lambda: tokenizer.encode_codes(tmp_path / "a.wav"))
    assert passed == documented("A clip through `encode_codes`")
    rooms = [called for _, called in passed]
    assert len(rooms) == len(set(rooms))


@pytest.mark.slow
def test_a_clip_that_is_trained_on_passes_the_rooms_that_the_page_names(audio, tmp_path):
    sizes = {"encoder-width": 8, "encoder-depth": 1, "decoder-width": 8, "decoder-depth": 1}
    sizes |= {"sampling-rate": RATE, "hop-length": 80, "latent-dim": 6, "envelope-dim": 2}
    sizes |= {"steps": 2, "batch-size": 2, "crop-seconds": 0.5, "held-out": 1, "num-workers": 0}
    options = [str(word) for name, value in sizes.items() for word in (f"--{name}", value)]
    command = ["train", str(audio), "--out", str(tmp_path / "run"), *options]
    passed = walk(lambda: main(command))
    assert (tmp_path / "run" / "model").is_dir()
    assert passed == documented("A clip through `latok train`")
