"""The sounds of a report: each clip in each way, made once even if several tables show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tokenizer.audio import write_audio
from tokenizer.devices import device_of
from tokenizer.evaluation.coding import Condition, code_clip, read_clip
from tokenizer.evaluation.metrics import MelReference, code_counts, code_use, si_sdr
from tokenizer.evaluation.report.pictures import draw_spectrogram, spectrogram_db
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.loading import load_tokenizer
from tokenizer.model.parts import DecoderName
from tokenizer.training.clips import Clip, short_names

# Further channels are left out.
_MAX_CHANNELS = 2


@dataclass(frozen=True)
class Way:
    """How a sound is made from the original; equal ways share their files."""

    tokenizer: str | None = None  # checkpoint; None for the original itself
    n_codebooks: int | None = None  # None for continuous latents
    decoder: DecoderName = "continuous"


@dataclass
class Sound:
    """One clip made in one way: its files, relative to the page, and its figures."""

    audio: str
    picture: str
    si_sdr: float | None = None  # dB; None for the original, as is the mel distance
    mel: float | None = None
    kbps: float | None = None  # of the code file, headers included; None where there are no codes


@dataclass
class Sounds:
    """All sounds of a report: for each way, one for each clip, and the use of codes, if any."""

    names: list[str]
    seconds: list[float]  # after clips were cut
    by_way: dict[Way, list[Sound]] = field(default_factory=dict)
    code_counts: dict[Way, list[list[int]]] = field(default_factory=dict)
    code_use: dict[Way, dict[str, float]] = field(default_factory=dict)

    def means(self, way: Way) -> dict[str, float | None]:
        """The mean of each figure over the clips; None where there is none."""
        means = {}
        for figure in ("si_sdr", "mel", "kbps"):
            values = [getattr(sound, figure) for sound in self.by_way[way]]
            means[figure] = None if None in values else float(np.mean(values))
        return means


def make_sounds(
    clips: Sequence[Clip],
    ways: Sequence[Way],
    out: Path,
    sampling_rate: int,
    seconds: float | int,
    device: str,
    advance: Callable[[], object],
) -> Sounds:
    """Writes every clip in every way as FLAC with a spectrogram, and measures it.

    Files go to ``audio/`` and ``pictures/`` in ``out``. The original is always among the ways, all
    tokenizers have the sampling rate, longer clips are cut to ``seconds``, and ``advance`` is
    called after every sound.
    """
    for folder in ("audio", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    length = round(seconds * sampling_rate)
    originals = [
        np.ascontiguousarray(read_clip(clip, sampling_rate)[:_MAX_CHANNELS, :length])
        for clip in clips
    ]
    loudest = [float(spectrogram_db(wave, sampling_rate).max()) for wave in originals]
    lengths = [wave.shape[-1] / sampling_rate for wave in originals]
    sounds = Sounds(short_names(clips), lengths)

    def put(way: Way, index: int, clip: int, wave: np.ndarray) -> Sound:
        # The user's file names may hold any character, so they are no part of it.
        stem = f"{clip + 1:02d}-{index:02d}-{_slug(way)}"
        sound = Sound(f"audio/{stem}.flac", f"pictures/{stem}.png")
        write_audio(out / sound.audio, wave, sampling_rate, subtype="PCM_16")
        draw_spectrogram(wave, sampling_rate, out / sound.picture, loudest[clip])
        advance()
        return sound

    original = Way()
    sounds.by_way[original] = [put(original, 0, i, wave) for i, wave in enumerate(originals)]
    references = [MelReference(torch.from_numpy(wave), sampling_rate) for wave in originals]
    loaded: tuple[str, LatentTokenizer] | None = None
    # Sorted by tokenizer, so that only one is in memory at a time.
    coded_ways = [way for way in dict.fromkeys(ways) if way.tokenizer is not None]
    for index, way in enumerate(sorted(coded_ways, key=lambda way: str(way.tokenizer)), 1):
        assert way.tokenizer is not None
        if loaded is None or loaded[0] != way.tokenizer:
            loaded = way.tokenizer, load_tokenizer(way.tokenizer).to(device_of(device))  # pyright: ignore
        tokenizer, clip_sounds, codes = loaded[1], [], []
        for i, wave in enumerate(originals):
            coded = code_clip(tokenizer, wave, Condition(way.n_codebooks, way.decoder))
            sound = put(way, index, i, coded.audio)
            estimate = torch.from_numpy(coded.audio)
            sound.si_sdr = si_sdr(estimate, torch.from_numpy(wave))
            sound.mel = references[i].distance(estimate)
            if coded.codes is not None:
                sound.kbps = coded.kbps
                codes.append(coded.codes)
            clip_sounds.append(sound)
        sounds.by_way[way] = clip_sounds
        if codes:
            array, sizes = np.concatenate(codes), tokenizer.codebook_sizes
            sounds.code_use[way] = code_use(array, sizes)
            sounds.code_counts[way] = code_counts(array, sizes)
    return sounds


def _slug(way: Way) -> str:
    if way.tokenizer is None:
        return "original"
    what = "latents" if way.n_codebooks is None else f"{way.n_codebooks}-codebooks"
    return f"{what}-{way.decoder}"
