"""The interface of both families of models: training batches, requests and generated rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.saving import save_pretrained

if TYPE_CHECKING:  # `CodecLMConfig` needs this module, and must not import so much.
    from tokenizer import LatentTokenizer

# Seconds: a day.
_LONGEST = 86_400

# The largest sizes that a model's configuration may name: it decides how much memory is allocated,
# and may come from anywhere.
MAX_DEPTH, MAX_WIDTH, MAX_CODEBOOKS, MAX_ENTRIES = 1024, 2**16, 1024, 2**16

# One clip as the tokenizer decodes it: "codes" or "latents", "num_samples", "num_channels", "gain".
TokenRow = dict[str, Any]
# Clips to train on: "codes" int64 [B, T, K] or "latents" float32 [B, T, D]; "mask" bool [B, T],
# True for frames of the clip; "ended" bool [B], True where the clip ends with the last of them;
# "label" int64 [B], -1 for none; "caption", a list of B strings or None.
Batch = dict[str, Any]


@dataclass(frozen=True)
class CodeSampling:
    """How a language model draws codes.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest code.
        top_k: Number of likeliest codes to draw from; None for all.
        top_p: Total probability of the likeliest codes to draw from; None for all.
        use_cache: Whether to keep keys and values of earlier steps; the result is the same.
        stop: Whether the model may end clips before the requested length.
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    use_cache: bool = True
    stop: bool = False

    def __post_init__(self) -> None:
        # Written so that NaN, for which every comparison is false, is refused too.
        if not self.temperature >= 0:
            raise InputError(f"temperature must not be negative, got {self.temperature:g}.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p:g}.")


@dataclass(frozen=True)
class DiffusionSampling:
    """How a diffusion model integrates from noise to latents.

    Attributes:
        steps: Evaluations of the model; guidance doubles the batch of each.
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


def kept_frames(
    ranges: Sequence[tuple[float | int, float | int]], num_frames: int, frame_rate: float | int
) -> Bool[np.ndarray, " T"]:
    """Which frames of a recording lie in one of the ranges of seconds."""
    keep = np.zeros(num_frames, dtype=bool)
    for start, stop in ranges:
        first, last = (round(x * frame_rate) for x in (start, stop))
        if not 0 <= first < last:
            raise InputError(f"From {start:g} to {stop:g} s there is no whole frame to keep.")
        keep[first:last] = True
    if not keep.any():
        raise InputError(f"Nothing to keep: the recording ends at {num_frames / frame_rate:g} s.")
    return keep


def label_indices(labels: Sequence[str | None], names: Sequence[str]) -> Int[Tensor, " B"]:
    """Labels as int64 indices into ``names``; -1 for None."""
    unknown = sorted({label for label in labels if label and label not in names})
    if unknown:
        listed = ", ".join(names) or "none"
        raise InputError(f"Unknown label {unknown[0]!r}; the model was trained with: {listed}.")
    return torch.tensor([names.index(label) if label else -1 for label in labels])


@dataclass(frozen=True)
class GenerationRequest:
    """Clips of equal length to generate.

    Attributes:
        num_frames: T of each clip, a prompt included.
        num_samples: Samples of each decoded clip; at most what the T frames cover.
        num_channels: Audio channels that the tokenizer codes jointly.
        gain: Root mean square level of the clips. None: the level of the class in the training
            data, else the tokenizer's default. Clips with a prompt have the prompt's level.
        clip_channels: Channels of a clip, if it has more than are coded jointly: so many items in a
            row as it has groups of these are one clip. Default: ``num_channels``.
        labels: Class or None for each clip; its length is the number of clips.
        captions: Text or None for each clip; empty means None for all.
        prompts: For each clip the row of the tokenizer that it begins with, or None; empty means
            None for all.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
        codes: Settings of language models.
        diffusion: Settings of diffusion models.
    """

    num_frames: int
    num_samples: int
    num_channels: int = 1
    gain: float | int | None = None
    clip_channels: int | None = None
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
        """Number of items, each a clip or one of its groups of channels."""
        return len(self.labels)

    @property
    def groups(self) -> int:
        """How many items are one clip."""
        return -(-(self.clip_channels or 1) // self.num_channels)

    def conditions(self, names: Sequence[str]) -> dict[str, Any]:
        """Labels and captions, as in a training batch."""
        captions = list(self.captions) or [None] * self.batch_size
        return {"label": label_indices(self.labels, names), "caption": captions}

    def columns(self, index: int, gain: float | None = None) -> TokenRow:
        """The columns of an item besides codes or latents.

        Its level is that of its prompt, else the requested one, else ``gain``.
        """
        prompt = self.prompts[index] if self.prompts else None
        level = gain if self.gain is None else float(self.gain)
        if prompt is not None and prompt.get("gain") is not None:
            level = float(np.mean(prompt["gain"]))
        row: TokenRow = {"num_samples": self.num_samples, "num_channels": self.num_channels}
        return row if level is None else row | {"gain": [level] * self.num_channels}


def num_samples_of(seconds: float | int, sampling_rate: int) -> int:
    """Samples of a clip of this length, which is positive and at most a day."""
    if not abs(seconds) <= _LONGEST:
        raise InputError(f"seconds={seconds:g}: a clip has a length, of {_LONGEST:,} s at most.")
    if (count := round(seconds * sampling_rate)) < 1:
        raise InputError(f"seconds={seconds:g}: nothing to generate.")
    return count


def encoder_fingerprint(tokenizer: LatentTokenizer) -> str:
    """Sixteen hex digits that identify the encoder of a tokenizer.

    Unlike ``LatentTokenizer.fingerprint``, they stay the same when a decoder is finetuned.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.autoencoder.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class ConditionedModel:
    """What both families share; ``config`` holds the names of classes and their levels."""

    config: Any

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes that it can be conditioned on."""
        return tuple(self.config.labels)

    def gain(self, label: str | None) -> float | None:
        """Median level of the training rows of a class (None: of all rows); None if unknown."""
        gains = self.config.gains or {}
        return gains.get(label or "", gains.get(""))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves configuration and weights; an error leaves the files of before.

        Arguments are those of the library's class; other files in the folder stay.
        """
        save = super().save_pretrained  # pyright: ignore[reportAttributeAccessIssue]
        # A pipeline passes on the arguments that it finds in our signature.
        kwargs |= {"variant": variant, "max_shard_size": max_shard_size}
        save_pretrained(save, save_directory, **kwargs)


@runtime_checkable
class GenerativeModel(Protocol):
    """What training, sampling and evaluation need of a model, besides ``torch.nn.Module``.

    Attributes:
        column: What it models: "codes" or "latents".
    """

    column: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes that it can be conditioned on."""
        ...

    def training_loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars of a batch on the model's device: "loss" is minimised, the others are logged.

        The generator, on the CPU, is the only source of randomness.
        """
        ...

    def generate_rows(
        self, request: GenerationRequest, generator: torch.Generator
    ) -> list[TokenRow]:
        """A row per clip for the tokenizer's ``decode_codes`` or ``decode_latents``.

        The generator, on the CPU, is the only source of randomness.
        """
        ...

    def save_pretrained(self, save_directory: str | Path) -> Any:
        """Writes configuration and weights (safetensors) into a folder."""
        ...
