"""Audio for examples that were given none: clips of tones and of noise, in a folder each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenizer import write_audio

RATE = 16_000


def audio_folder(given: Path | None, out: Path, clips: int = 8, seconds: float = 2.0) -> Path:
    """The folder that was given, or a new one with made audio in ``out/audio``."""
    if given is not None:
        return given
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE)) / RATE
    for kind in ("noise", "tones"):
        folder = out / "audio" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(clips):
            if kind == "tones":
                partials = [np.sin(2 * np.pi * pitch * time) for pitch in rng.uniform(100, 1500, 4)]
                wave = np.sum(partials, 0) * np.exp(-2 * (time % 0.5))
            else:
                wave = rng.normal(size=len(time)) * (1 + np.sin(2 * np.pi * 3 * time))
            wave = 0.1 * wave / np.sqrt(np.mean(wave**2))
            write_audio(folder / f"{index}.wav", wave[None].astype(np.float32), RATE)
    return out / "audio"
