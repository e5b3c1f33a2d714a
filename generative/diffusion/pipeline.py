"""`LatentDiffusionPipeline`: model, scheduler and tokenizer as one `diffusers` pipeline.

pipe = LatentDiffusionPipeline.from_pretrained("folder")
out = pipe(label="music", seconds=10, generator=torch.Generator().manual_seed(0))
out.audios  # float32 [B, C, N] at out.sampling_rate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel

from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.protocol import encoder_fingerprint, label_indices, num_samples_of
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

# `diffusers` looks for base classes here: see `LatentDiffusionPipeline.load_config`.
__all__ = ["LatentDiffusionOutput", "LatentDiffusionPipeline", "ModelMixin", "PreTrainedModel"]


@dataclass
class LatentDiffusionOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        audios: Float32 ``[B, C, N]``.
        sampling_rate: Hz.
        latents: Float32 ``[B, D, T]``, before any snapping to codes.
    """

    audios: np.ndarray
    sampling_rate: int
    latents: Tensor


class LatentDiffusionPipeline(DiffusionPipeline):
    """Generates audio from class labels or captions; continues and inpaints.

    Args:
        model: The diffusion model.
        scheduler: Any flow matching scheduler; see `generative.make_scheduler`.
        tokenizer: Decodes the latents; the one whose latents the model was trained on.
    """

    def __init__(self, model: LatentDiffusion, scheduler: Any, tokenizer: LatentTokenizer) -> None:
        super().__init__()
        made_by = model.config["fingerprint"]
        if made_by is not None and made_by != encoder_fingerprint(tokenizer):
            raise InputError(
                f"The model was trained on latents of encoder {made_by}, the tokenizer's is"
                f" {encoder_fingerprint(tokenizer)}: its decoder would make noise of them."
            )
        self.register_modules(model=model, scheduler=scheduler, tokenizer=tokenizer)

    def register_to_config(self, **kwargs: Any) -> None:
        """Records the components; see `load_config`."""
        super().register_to_config(**_with_module(kwargs))

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Reads ``model_index.json``, with this module as the one that loads model and tokenizer.

        `diffusers` finds out how to load a class by the base classes that its module names. The
        tokenizer's own module names none of them, and modules may have moved since the export.
        """
        config = super().load_config(*args, **kwargs)
        return _with_module(config) if isinstance(config, dict) else config

    @torch.no_grad()
    def __call__(
        self,
        label: str | Sequence[str | None] | None = None,
        caption: str | Sequence[str | None] | None = None,
        *,
        seconds: float | int = 10.0,
        num_inference_steps: int = 25,
        guidance_scale: float | int = 1.0,
        generator: torch.Generator | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        keep_seconds: Sequence[Any] = (),
        n_codebooks: int | None = None,
        gain: float | int | None = None,
    ) -> LatentDiffusionOutput:
        """Generates one clip per label or caption.

        Args:
            label: Class, or a list of them; None for none.
            caption: Text, or a list of them; None for none.
            seconds: Length of the clips.
            num_inference_steps: Evaluations of the model.
            guidance_scale: 1 is no guidance.
            generator: On the CPU. Default: seeded anew by torch.
            audio: Audio (a path, array, ...) of which parts are kept.
            sampling_rate: Of a bare array.
            keep_seconds: Pairs (from, to) of ``audio`` that stay as they are; everything else is
                generated to fit. ``[(0, 3)]`` continues the first three seconds.
            n_codebooks: Snaps the latents to codes of so many codebooks, decoded by the
                tokenizer's decoder for codes. Default: none, and the continuous decoder.
            gain: Root mean square level of the clips. Default: the kept audio's, else that of the
                class in the training data, else the tokenizer's default.

        Returns:
            Audio, its rate and the latents.
        """
        labels, captions = _pair(label, caption)
        tokenizer, model = self.tokenizer, self.model
        num_samples = num_samples_of(seconds, tokenizer.sampling_rate)
        frames = tokenizer.autoencoder.num_frames(num_samples)
        known, keep, level = self._kept(audio, sampling_rate, keep_seconds, frames, len(labels))
        with self.progress_bar(total=num_inference_steps) as bar:  # pyright: ignore[reportCallIssue]
            latents = model.sample(
                {"label": label_indices(labels, model.labels), "caption": captions},
                frames,
                scheduler=self.scheduler,
                steps=num_inference_steps,
                generator=torch.Generator().manual_seed(torch.seed())
                if generator is None
                else generator,
                guidance_scale=guidance_scale,
                known=known,
                keep=keep,
                progress=bar,
            ).transpose(1, 2)
        decoded, decoder = latents, "continuous"
        if n_codebooks is not None:
            decoded = tokenizer.dequantize(tokenizer.quantize(latents, n_codebooks))
            decoder = tokenizer.codes_decoder
        loudness = level if gain is None else gain
        default = tokenizer.default_gain
        levels = [
            (model.gain(name) or default) if loudness is None else float(loudness)
            for name in labels
        ]
        audios = tokenizer.decode(
            decoded, decoder=decoder, n_codebooks=n_codebooks, gain=torch.tensor(levels)
        )
        return LatentDiffusionOutput(
            audios=audios[..., :num_samples].cpu().numpy(),
            sampling_rate=tokenizer.sampling_rate,
            latents=latents,
        )

    def _kept(
        self,
        audio: Any,
        rate: int | None,
        ranges: Sequence[tuple[float | int, float | int]],
        frames: int,
        n: int,
    ) -> tuple[Tensor | None, Tensor | None, float | None]:
        """Known latents ``[n, T, D]``, which frames to keep ``[n, T]``, and their level."""
        if (audio is None) != (not ranges):
            raise InputError("Inpainting needs both audio= and keep_seconds=.")
        if audio is None:
            return None, None, None
        row = self.tokenizer.encode_latents(audio, sampling_rate=rate, downmix=True)
        found = torch.from_numpy(row["latents"])[:frames, : len(self.model.latents_mean)]
        known = torch.zeros(frames, found.shape[-1])
        known[: len(found)] = found
        # The last frame of a file may look at the silence after it, which must not be imposed.
        usable = min(row["num_samples"] // self.tokenizer.hop_length, frames)
        keep = torch.zeros(frames, dtype=torch.bool)
        for start, stop in ranges:
            first, last = (round(x * self.tokenizer.frame_rate) for x in (start, stop))
            if not 0 <= first < last:
                raise InputError(f"keep_seconds={(start, stop)} is no range of time.")
            keep[first : min(last, usable)] = True
        if not bool(keep.any()):
            raise InputError("keep_seconds names nothing that is in the audio.")
        gain = float(np.mean(row["gain"]))
        return known.expand(n, -1, -1), keep.expand(n, -1), gain


def _with_module(config: dict[str, Any]) -> dict[str, Any]:
    classes = {"model": LatentDiffusion.__name__, "tokenizer": LatentTokenizer.__name__}
    named = {name: (__name__, classes[name]) for name in classes if (config.get(name) or [0])[0]}
    return config | named


def _pair(label: Any, caption: Any) -> tuple[list[str | None], list[str | None]]:
    labels = [label] if label is None or isinstance(label, str) else list(label)
    captions = [caption] if caption is None or isinstance(caption, str) else list(caption)
    count = max(len(labels), len(captions))
    if len(labels) == 1:
        labels = labels * count
    if len(captions) == 1:
        captions = captions * count
    if len(labels) != len(captions):
        raise InputError(f"{len(labels)} labels for {len(captions)} captions.")
    return labels, captions
