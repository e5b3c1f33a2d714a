"""Perceptual metrics through the libraries that implement them: the extra ``perceptual``.

Each compares a reconstruction with its original and estimates how listeners would rate it. They
complement SI-SDR and the mel distance, and like these replace no listening test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import soxr

from tokenizer.errors import InputError, import_extra

METRICS = ("visqol", "zimtohrli", "pesq", "stoi")
SPEECH_METRICS = ("pesq", "stoi")


def installed_metrics() -> tuple[str, ...]:
    """Those of `METRICS` whose packages are installed."""
    return tuple(name for name in METRICS if find_spec(_package(name)) is not None)


def _package(metric: str) -> str:
    return "pystoi" if metric == "stoi" else metric


def _library(metric: str) -> Any:
    return import_extra(_package(metric), f"The metric {metric}", "perceptual")


@cache
def _visqol_model() -> Any:
    model = _library("visqol").VisqolApi()
    model.create(mode="audio")
    return model


def visqol(estimate: np.ndarray, target: np.ndarray) -> float:
    """ViSQOL's audio mode (Chinen et al. 2020, "ViSQOL v3"): 1 (bad) to 4.73, at 48 kHz."""
    return float(_visqol_model().measure_from_arrays(target, estimate, 48_000).moslqo)


def zimtohrli(estimate: np.ndarray, target: np.ndarray) -> float:
    """Zimtohrli's estimate of the mean opinion score: 1 (bad) to 5, at 48 kHz."""
    return float(_library("zimtohrli").mos_from_signals(target, estimate))


def pesq(estimate: np.ndarray, target: np.ndarray) -> float:
    """Wide-band PESQ (ITU-T P.862.2), for speech: 1.04 (bad) to 4.64, at 16 kHz.

    NaN where it finds no utterance, or the clip is too short for it (a quarter of a second).
    """
    library = _library("pesq")
    if not (target.any() and estimate.any()):
        return float("nan")
    try:
        return float(library.pesq(16_000, target, estimate, "wb"))
    except (library.NoUtterancesError, library.BufferTooShortError):
        return float("nan")


def stoi(estimate: np.ndarray, target: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), for speech: 0 (none) to 1.

    NaN where the clip has less than 30 frames (0.4 s) of sound.
    """
    import warnings

    measure = _library("stoi").stoi
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(target, estimate, 16_000))
        except RuntimeWarning:
            return float("nan")


# Of each metric, how it is measured and at which rate in Hz; wide-band for the speech metrics.
_MEASURES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], int]] = {
    "visqol": (visqol, 48_000),
    "zimtohrli": (zimtohrli, 48_000),
    "pesq": (pesq, 16_000),
    "stoi": (stoi, 16_000),
}


class PerceptualMetrics:
    """Chosen metrics, averaged over channels.

    Args:
        names: Of `METRICS`.
        speech_clips: Speech metrics are taken only of clips whose path matches this pattern
            (as file names do: ``*``, ``?``, ``[...]``).
    """

    def __init__(self, names: Sequence[str], speech_clips: str = "*") -> None:
        unknown = sorted(set(names) - set(METRICS))
        if unknown:
            raise InputError(f"Unknown metrics {unknown}; known: {', '.join(METRICS)}.")
        self.names, self.speech_clips = tuple(names), speech_clips
        for name in self.names:
            _library(name)

    def __call__(
        self, estimate: np.ndarray, target: np.ndarray, sampling_rate: int, clip: str
    ) -> dict[str, float]:
        """Each metric of audio ``[C, N]`` by its name, without those that are undefined for it.

        ``sampling_rate`` is in Hz; ``clip`` is the path for ``speech_clips``.
        """
        if estimate.shape != target.shape:
            raise InputError(f"The estimate has shape {estimate.shape}, the target {target.shape}.")
        speech = fnmatch(clip, self.speech_clips)
        values = {}
        for name in self.names:
            if name in SPEECH_METRICS and not speech:
                continue
            measure, rate = _MEASURES[name]
            pairs = (
                [soxr.resample(x.astype(np.float64), sampling_rate, rate) for x in pair]
                for pair in zip(estimate, target, strict=True)
            )
            value = float(np.mean([measure(e, t) for e, t in pairs]))
            if np.isfinite(value):
                values[name] = value
        return values
