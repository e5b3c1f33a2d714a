"""What both families of models agree on: batches to train on, requests, and rows as answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

# Seconds: a day.
_LONGEST = 86_400

# The largest sizes that a model's configuration may name: it decides how much memory is allocated,
# and may come from anywhere.
MAX_DEPTH, MAX_WIDTH, MAX_CODEBOOKS, MAX_ENTRIES = 1024, 2**16, 1024, 2**16

# One clip as the tokenizer decodes it: "codes" or "latents", "num_samples", "num_channels", "gain".
TokenRow = dict[str, Any]
# "codes" int64 [B, T, K] or "latents" float32 [B, T, D], "mask" bool [B, T], "ended" bool [B]: the
# clip ends with the last frame, "label" int64 [B] (-1: none), "caption" list[str | None].
Batch = dict[str, Any]


@dataclass(frozen=True)
class CodeSampling:
    """How a language model draws codes.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest code.
        top_k: Draw from so many of the likeliest codes only; None for all.
        top_p: Draw from the likeliest codes that together have this probability; None for all.
        use_cache: Whether keys and values of earlier steps are kept; the result is the same.
        stop: Whether clips may end before the requested length, where the model says so.
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    use_cache: bool = True
    stop: bool = False

    def __post_init__(self) -> None:
        # NaN, which compares as false, is refused too.
        if not self.temperature >= 0:
            raise InputError(f"temperature must not be negative, got {self.temperature:g}.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p:g}.")


@dataclass(frozen=True)
class DiffusionSampling:
    """How a diffusion model goes from noise to latents.

    Attributes:
        steps: Evaluations of the model (twice as many with guidance, in one batch).
        solver: "euler" (`FlowMatchEulerDiscreteScheduler`) or "dpm++"
            (`DPMSolverMultistepScheduler`, second order).
    """

    steps: int = 25
    solver: Literal["euler", "dpm++"] = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}.")
        if self.solver not in ("euler", "dpm++"):
            raise InputError(f"solver={self.solver!r} is neither 'euler' nor 'dpm++'.")


def check_prompt_length(frames: int, num_frames: int) -> None:
    """Raises InputError unless a prompt leaves some of the clip's frames to generate."""
    if frames >= num_frames:
        raise InputError(
            f"The prompt has {frames} frames, the whole clip {num_frames}: nothing is left to"
            " generate."
        )


def label_indices(labels: Sequence[str | None], names: Sequence[str]) -> Int[Tensor, " B"]:
    """Labels as int64 indices into ``names``; -1 for None.

    Raises:
        ValueError: If a label is not among the names.
    """
    unknown = sorted({label for label in labels if label and label not in names})
    if unknown:
        listed = ", ".join(names) or "none"
        raise InputError(f"Unknown label {unknown[0]!r}; the model was trained with: {listed}.")
    return torch.tensor([names.index(label) if label else -1 for label in labels])


@dataclass(frozen=True)
class GenerationRequest:
    """Some clips of equal length to generate.

    Attributes:
        num_frames: T of each clip, a prompt included.
        num_samples: What the T frames are cut to when they are decoded; at most what they cover.
        num_channels: Audio channels that the tokenizer codes jointly.
        gain: Root mean square level of the clips; None: that of the class in the training data,
            else the tokenizer's default.
        labels: Name of a class, or None, for each clip; its length is the number of clips.
        captions: Text or None for each clip; empty means None for all.
        prompts: For each clip a row of the tokenizer whose frames the clip begins with, or None;
            empty means None for all.
        guidance_scale: Of classifier-free guidance; 1 is none.
        codes: Settings of language models.
        diffusion: Settings of diffusion models.
    """

    num_frames: int
    num_samples: int
    num_channels: int = 1
    gain: float | int | None = None
    labels: Sequence[str | None] = (None,)
    captions: Sequence[str | None] = ()
    prompts: Sequence[Mapping[str, Any] | None] = ()
    guidance_scale: float | int = 1.0
    codes: CodeSampling = field(default_factory=CodeSampling)
    diffusion: DiffusionSampling = field(default_factory=DiffusionSampling)

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_samples < 1:
            raise InputError(
                f"Nothing to generate: num_frames={self.num_frames},"
                f" num_samples={self.num_samples}."
            )
        if not self.labels:
            raise InputError("Nothing to generate: labels is empty; [None] asks for one clip.")
        if not math.isfinite(self.guidance_scale):
            raise InputError(f"guidance_scale must be finite, got {self.guidance_scale:g}.")
        for name in ("captions", "prompts"):
            values = getattr(self, name)
            if values and len(values) != len(self.labels):
                raise InputError(f"{len(values)} {name} for {len(self.labels)} labels.")

    @property
    def batch_size(self) -> int:
        """Number of clips."""
        return len(self.labels)

    def conditions(self, names: Sequence[str]) -> dict[str, Any]:
        """Labels and captions in the form of a training batch."""
        captions = list(self.captions) or [None] * self.batch_size
        return {"label": label_indices(self.labels, names), "caption": captions}

    def shared_columns(self, gain: float | None = None) -> TokenRow:
        """What every generated row holds besides its codes or latents.

        Args:
            gain: Level where the request names none; None leaves it to the tokenizer.
        """
        level = gain if self.gain is None else float(self.gain)
        row: TokenRow = {"num_samples": self.num_samples, "num_channels": self.num_channels}
        return row if level is None else row | {"gain": [level] * self.num_channels}


def num_samples_of(seconds: float | int, sampling_rate: int) -> int:
    """Samples of a clip of this length.

    Raises:
        ValueError: If nothing is left to generate, or no end of it.
    """
    if not abs(seconds) <= _LONGEST:
        raise InputError(f"seconds={seconds:g}: a clip has a length, of {_LONGEST:,} s at most.")
    if (count := round(seconds * sampling_rate)) < 1:
        raise InputError(f"seconds={seconds:g}: nothing to generate.")
    return count


def encoder_fingerprint(tokenizer: LatentTokenizer) -> str:
    """Sixteen hex digits that say which encoder made some latents.

    The whole fingerprint will not do: it changes with a decoder's finetuning, latents do not.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.autoencoder.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@runtime_checkable
class GenerativeModel(Protocol):
    """What training, sampling and evaluation need of a model; it is a ``torch.nn.Module`` too.

    Attributes:
        column: What it learns: "codes" or "latents".
    """

    column: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes it can be conditioned on."""
        ...

    def training_loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of a batch: "loss" is the one to minimise, the others are logged.

        Args:
            batch: See `Batch`; tensors on the model's device.
            generator: On the CPU; the only source of randomness.
        """
        ...

    def generate_rows(
        self, request: GenerationRequest, generator: torch.Generator
    ) -> list[TokenRow]:
        """A row per clip that the tokenizer's ``decode_codes`` or ``decode_latents`` takes.

        Args:
            request: What to generate.
            generator: On the CPU; the only source of randomness.
        """
        ...

    def save_pretrained(self, save_directory: str | Path) -> Any:
        """Writes configuration and weights (safetensors) into a folder."""
        ...
