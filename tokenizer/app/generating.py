"""The interface of generators: the app itself depends on no generative model."""

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
        guidance: Scale of classifier-free guidance; 1 turns it off.
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
    """A generative model for the app, such as a trained run.

    Attributes:
        name: What the page calls it.
        generate: Takes a `tokenizer.app.generating.Wish`; returns float32 audio ``[C, N]`` and its
            sampling rate in Hz. The page shows the text of a ValueError that it raises.
        labels: Classes to choose from.
        takes_captions: Whether it was trained with texts.
    """

    name: str
    generate: Callable[[Wish], tuple[np.ndarray, int]]
    labels: tuple[str, ...] = ()
    takes_captions: bool = False
