"""How long and how fast to train: the settings that every training run has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from tokenizer.errors import InputError

_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}


def check_fields(
    config: Any, *, positive: Iterable[str] = (), **bounds: tuple[float | int, float | int]
) -> None:
    """Refuses settings, fields of a dataclass, of the wrong type, NaN, infinite or out of bounds.

    Bounds are the smallest and the largest value of a field. The ValueError names the first field
    that is wrong, and its value.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        kinds = _KINDS.get(str(field.type).removesuffix(" | None"))
        is_left_out = value is None and str(field.type).endswith(" | None")
        if (
            kinds is not None
            and not is_left_out
            and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool))
        ):
            raise InputError(f"{field.name} must be of type {field.type}, got {value!r}.")
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, float) and not math.isfinite(part):
                raise InputError(f"{field.name} must be finite, got {part}.")
    for name in positive:
        if getattr(config, name) <= 0:
            raise InputError(f"{name} must be positive, got {getattr(config, name)}.")
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            bound = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise InputError(f"{name} must be {bound}, got {value}.")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train.

    Attributes:
        steps: Optimizer steps of the whole run. More steps than before continue a run; the learning
            rate then follows the schedule of the new number.
        batch_size: Items per step, process and accumulated batch.
        accumulate: Batches whose gradients are averaged for one step.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to a hundredth of the
            peak.
        warmup_steps: Length of the warm-up in steps.
        weight_decay: Weight decay of AdamW, on matrices only.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay per step of the averaged weights, which the run delivers.
        log_every: Steps between lines of the log.
        validate_every: Steps between validations; 0 validates at the end only.
        sample_every: Steps between samples to listen to; 0 writes none.
        checkpoint_every: Steps between checkpoints; 0 saves by time only.
        checkpoint_seconds: Seconds between checkpoints.
        mixed_precision: Arithmetic of the networks: "no" (float32), "bf16" or "fp16".
        num_workers: Processes that read data, per training process. By default 1 on a CPU; with a
            GPU the machine's cores over its training processes, 16 at most.
        compile: Whether torch.compile compiles the model. That takes minutes at the start.
        seed: Seed of everything random.
    """

    steps: int
    batch_size: int = 12
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 500
    sample_every: int = 0
    checkpoint_every: int = 0
    checkpoint_seconds: float = 180.0
    mixed_precision: str = "no"
    num_workers: int | None = None
    compile: bool = False
    seed: int = 0

    # What a resumed run may change. Of batch_size and accumulate only the number of items per step
    # has to stay, which also depends on the number of processes: `Trainer` checks it.
    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        "steps",
        "batch_size",
        "accumulate",
        "log_every",
        "validate_every",
        "sample_every",
        "checkpoint_every",
        "checkpoint_seconds",
        "num_workers",
        "compile",
    )

    def __post_init__(self) -> None:
        numbers = [f.name for f in fields(self) if f.type in ("int", "float")]
        at_least_one = ("steps", "batch_size", "accumulate", "log_every")
        bounds: dict[str, Any] = dict.fromkeys(numbers, (0, math.inf))
        bounds |= dict.fromkeys(at_least_one, (1, math.inf))
        bounds |= {"ema_decay": (0, 1), "seed": (0, 2**63 - 1)}
        if self.num_workers is not None:
            bounds["num_workers"] = (0, math.inf)
        check_fields(self, **bounds)
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise InputError(f"mixed_precision={self.mixed_precision!r} is not no, bf16 or fp16.")

    def fixed_settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run it continues."""
        return {k: v for k, v in asdict(self).items() if k not in self.CHANGEABLE}


@dataclass(frozen=True)
class CropTrainingConfig(TrainingConfig):
    """How long and how fast to train a tokenizer, on random crops of audio.

    Attributes:
        crop_seconds: Length of a crop in seconds.
    """

    crop_seconds: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, positive=("crop_seconds",))


# Its name in version 0.1.
LoopConfig = CropTrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The schedule: linear warm-up, then a cosine down to 1% of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def step_seed(config: TrainingConfig, step: int) -> int:
    """Seed of what all processes draw alike in a step."""
    # torch takes 64 bits, which a date as the seed would exceed.
    return (config.seed * 1_000_003 + step) * 1_009 % 2**63


def process_seed(config: TrainingConfig, step: int, part: int, rank: int) -> int:
    """Seed of what one process draws for one of a step's accumulated batches."""
    return (((config.seed * 1_000_003 + step) * 1_009 + part) * 1_013 + rank) % 2**63
