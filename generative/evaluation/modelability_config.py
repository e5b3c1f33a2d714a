"""What a comparison by generation holds equal; see `generative.evaluation.modelability`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenizer.errors import InputError


@dataclass(frozen=True)
class ModelabilityConfig:
    """What is equal for all tokenizers.

    Attributes:
        minutes: Time that each model is trained for.
        bitrate: Bit/s and channel of the codes that language models learn: a tokenizer uses the
            most codebooks that fit.
        pattern: How language models order codes; see `generative.language_model.patterns`.
        width: Of the transformers.
        depth: Layers of the transformers.
        heads: Attention heads of the transformers.
        batch_size: Crops of a step.
        crop_seconds: Length of a crop.
        clips: Clips that each model generates.
        seconds: Length of these clips.
        guidance: Scale of classifier-free guidance.
        solver_steps: Evaluations of a diffusion model.
        seed: Of everything random.
    """

    minutes: float = 20.0
    bitrate: float = 4000.0
    pattern: str = "delay"
    width: int = 256
    depth: int = 4
    heads: int = 4
    batch_size: int = 16
    crop_seconds: float = 5.0
    clips: int = 48
    seconds: float = 5.0
    guidance: float = 2.0
    solver_steps: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("minutes", "bitrate", "crop_seconds", "seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive, got {value:g}.")
        if self.clips < 4:
            raise InputError(f"clips={self.clips}: a comparison needs at least 4.")
