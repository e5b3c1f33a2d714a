"""Settings of training runs of generative models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenizer.training.config import TrainingConfig as SharedConfig, check_fields


@dataclass(frozen=True)
class TrainingConfig(SharedConfig):
    """How long and how fast to train a generative model.

    Those of `tokenizer.training.TrainingConfig`, with other defaults, and:

    Attributes:
        crop_frames: Longer clips are cropped to so many latent frames.
        checkpoint_minutes: Minutes between checkpoints; 0 goes by checkpoint_seconds.
    """

    batch_size: int = 16
    learning_rate: float = 5e-4
    sample_every: int = 2000
    crop_frames: int = 512
    checkpoint_minutes: float = 0.0

    CHANGEABLE = (*SharedConfig.CHANGEABLE, "checkpoint_minutes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, crop_frames=(1, math.inf))
        if self.checkpoint_minutes:
            object.__setattr__(self, "checkpoint_seconds", 60 * self.checkpoint_minutes)
