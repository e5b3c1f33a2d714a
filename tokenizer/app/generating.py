"""What generates audio for the app: the app itself knows no generative model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Wish:
    """What the page asks a generator for.

    Attributes:
        seconds: Length of the clip, the prompt included.
        label: Class; None for none.
        caption: Text; None for none.
        prompt: File that the clip begins with; None for none.
        guidance: Scale of classifier-free guidance; 1 is none.
        seed: The same seed gives the same clip.
    """

    seconds: float
    label: str | None = None
    caption: str | None = None
    prompt: Path | None = None
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class AppGenerator:
    """Something that the app can generate with, such as a trained run.

    Attributes:
        name: What the page calls it.
        generate: Takes a `tokenizer.app.generating.Wish`; returns float32 audio ``[C, N]`` and its
            sampling rate in Hz. Bad wishes raise ValueError, whose text the page shows.
        labels: Classes to choose from.
        takes_captions: Whether it was trained with texts.
    """

    name: str
    generate: Callable[[Wish], tuple[np.ndarray, int]]
    labels: tuple[str, ...] = ()
    takes_captions: bool = False
