"""How long and how fast to train; nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tokenizer.errors import InputError


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train.

    Attributes:
        steps: Optimizer steps of the whole run.
        batch_size: Clips per step, process and accumulated batch.
        accumulate: Batches whose gradients are added up before a step.
        crop_frames: Longer clips are cropped to so many latent frames.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to a hundredth of the
            peak.
        warmup_steps: Length of the warm-up.
        weight_decay: Of AdamW, on matrices only.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay per step of the averaged weights, which are what the run delivers.
        log_every: Steps between lines of the log.
        validate_every: Steps between validations.
        sample_every: Steps between samples; 0 for none.
        checkpoint_every: Steps between checkpoints; 0 to go by time only.
        checkpoint_minutes: Minutes between checkpoints.
        mixed_precision: "no", "bf16" or "fp16", as `accelerate` understands it.
        num_workers: Processes that read data.
        seed: Of everything random.
    """

    steps: int
    batch_size: int = 16
    accumulate: int = 1
    crop_frames: int = 512
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 500
    sample_every: int = 2000
    checkpoint_every: int = 0
    checkpoint_minutes: float = 3.0
    mixed_precision: str = "no"
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # NaN, which compares as false, is refused too.
            if isinstance(value, (int, float)) and not value >= 0:
                raise InputError(f"{field.name} must not be negative, got {value}.")
        for name in ("steps", "batch_size", "accumulate", "crop_frames", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2**63, got {self.seed}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise InputError(f"mixed_precision={self.mixed_precision!r} is not no, bf16 or fp16.")


# What a resumed run may change.
UNSHARED = (
    "log_every",
    "validate_every",
    "sample_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "num_workers",
)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The schedule: linear warm-up, then a cosine down to 1% of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def seed_of(config: TrainingConfig, step: int, part: int, rank: int) -> int:
    """Of a batch: a different one for every step, accumulated batch and process."""
    seed = ((config.seed * 1_000_003 + step) * 1_009 + part) * 1_013 + rank
    # torch takes 64 bits, which a date as the seed would exceed.
    return seed % 2**63
