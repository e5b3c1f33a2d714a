"""What is done to training crops, so that a model meets more than its recordings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenizer.errors import InputError
from tokenizer.training.config import check_fields


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of what is done to training crops.

    Attributes:
        speed: Probability of playing a clip faster, pitch and all: new voices, and what lossy
            encoders cut off at 16 or 19 kHz moves up to the edge of the band.
        speed_range: How many times as fast.
        lowpass: Probability of a random low-pass filter; teaches the decoder that what is silent
            must stay silent.
        lowpass_range: Its cut-off in Hz.
        mix: Probability of adding a second clip.
        mix_range: Its level against the first in dB.
        round_to_16_bit: Probability of rounding to 16 bits, the noise floor of most recordings.
        level_jitter: Standard deviation in dB of the level that the crop is normalised to.
        level_range: Loudness of the crop as the listener gets it, in dB, around its own.
    """

    speed: float = 0.0
    speed_range: tuple[float, float] = (1.0, 1.4)
    lowpass: float = 0.5
    lowpass_range: tuple[float, float] = (2500.0, 21500.0)
    mix: float = 0.25
    mix_range: tuple[float, float] = (-20.0, 5.0)
    round_to_16_bit: float = 0.5
    level_jitter: float = 2.0
    level_range: float = 6.0

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("speed", "lowpass", "mix", "round_to_16_bit"), (0, 1))
        check_fields(self, level_jitter=(0, math.inf), level_range=(0, math.inf), **shares)
        for name in ("speed_range", "lowpass_range", "mix_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise InputError(f"{name} goes from low to high, got {low:g} {high:g}.")
        if self.speed_range[0] <= 0:
            raise InputError(f"speed_range is a factor above 0, got {self.speed_range[0]:g}.")
        if self.lowpass_range[0] <= 0:
            raise InputError(f"lowpass_range is in Hz above 0, got {self.lowpass_range[0]:g}.")


NO_AUGMENTATION = Augmentation(
    lowpass=0.0, mix=0.0, round_to_16_bit=0.0, level_jitter=0.0, level_range=0.0
)


def lowpass(audio: np.ndarray, sampling_rate: int, cutoff: float) -> np.ndarray:
    """Removes what lies above a cut-off in Hz from audio ``[..., N]``, with zero phase.

    The gain falls over 3% of the cut-off, like that of the lossy encoders that much audio has been
    through.
    """
    spectrum = np.fft.rfft(audio)
    frequency = np.fft.rfftfreq(audio.shape[-1], 1 / sampling_rate)
    gain = np.clip((cutoff * 1.03 - frequency) / (cutoff * 0.03), 0, 1)
    return np.fft.irfft(spectrum * gain, audio.shape[-1]).astype(np.float32)
