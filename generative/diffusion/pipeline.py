"""`LatentDiffusionPipeline`: model, scheduler and tokenizer as one `diffusers` pipeline.

    pipe = LatentDiffusionPipeline.from_pretrained("folder")
    out = pipe(label="music", seconds=10, generator=torch.Generator().manual_seed(0))
    out.audios  # float32 [B, C, N] at out.sampling_rate

``DiffusionPipeline.from_pretrained`` finds the class by its name, once `generative` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.protocol import encoder_fingerprint, kept_frames, label_indices, num_samples_of
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

# `diffusers` looks for base classes here: see `LatentDiffusionPipeline.load_config`.
__all__ = ["LatentDiffusionOutput", "LatentDiffusionPipeline", "ModelMixin", "PreTrainedModel"]

DEFAULT_SECONDS = 10.0


@dataclass
class LatentDiffusionOutput(AudioPipelineOutput):
    """Output of `LatentDiffusionPipeline`.

    Attributes:
        audios: Float32 ``[B, C, N]``, an array or tensor; or the latents.
        sampling_rate: Hz.
        latents: Float32 ``[B, D, T]``, before any snapping to codes.
    """

    audios: Any
    sampling_rate: int
    latents: Tensor


class LatentDiffusionPipeline(DiffusionPipeline):
    """Generates audio from class labels or captions; continues and inpaints.

    Args:
        model: The diffusion model.
        scheduler: Any flow matching scheduler; see `generative.make_scheduler`.
        tokenizer: Decodes the latents; its encoder made the model's training data.
    """

    model_cpu_offload_seq = "model->tokenizer"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, model: LatentDiffusion, scheduler: Any, tokenizer: LatentTokenizer) -> None:
        super().__init__()
        expected, actual = model.config["fingerprint"], encoder_fingerprint(tokenizer)
        if expected not in (None, actual):
            raise InputError(
                f"The model was trained on latents of encoder {expected}, the tokenizer's is"
                f" {actual}, whose decoder would turn them into noise."
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
        prompt: str | Sequence[str | None] | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        seconds: float | int | None = None,
        audio_length_in_s: float | int | None = None,
        audio_end_in_s: float | int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float | int = 1.0,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Float[Tensor, "B D T"] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        keep_seconds: Sequence[Any] = (),
        n_codebooks: int | None = None,
        gain: float | int | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> LatentDiffusionOutput | tuple[Any]:
        """Generates clips of classes and captions.

        Args:
            label: Class, or a list of them; None for none.
            caption: Text, or a list of them; None for none.
            prompt: The name of ``caption`` in other pipelines.
            negative_prompt: Text, or a list of them, that guidance leads away from. Default: no
                condition.
            seconds: Length of the clips; 10 by default.
            audio_length_in_s: The name of ``seconds`` in AudioLDM2.
            audio_end_in_s: The name of ``seconds`` in Stable Audio.
            num_inference_steps: Evaluations of the model.
            guidance_scale: Scale of classifier-free guidance; 1 for none.
            num_waveforms_per_prompt: Clips of each label and caption.
            generator: One, or a list with one for each clip; on the CPU, the noise is the same on
                every device. Default: one with a random seed.
            latents: Gaussian noise ``[B, D, T]`` to start from. Default: drawn by the generator.
            audio: Audio (a path, array, ...) of which parts are kept.
            sampling_rate: Hz, for a bare array.
            keep_seconds: Pairs (from, to) of ``audio`` that stay unchanged; the rest is generated
                to fit. ``[(0, 3)]`` continues the first three seconds.
            n_codebooks: Number of codebooks to which the latents are quantized; the decoder for
                codes then decodes them. Default: no quantization, and the continuous decoder.
            gain: Root mean square level of the clips. Default: the level of ``audio``, else that of
                the class in the training data, else the tokenizer's default.
            output_type: "np" for arrays, "pt" for tensors, "latent" for latents instead of audio.
            return_dict: Whether to return a `LatentDiffusionOutput`; else a tuple of the audio.
            callback_on_step_end: Called after every step with the pipeline, the step's index, its
                timestep and a dict of tensors. A dict that it returns may replace them.
            callback_on_step_end_tensor_inputs: The tensors of that dict: "latents", normalised
                ``[B, D, T]``, or none.

        Raises:
            ValueError: If the model does not know a label, or arguments do not fit each other.
        """
        if output_type not in ("np", "pt", "latent"):
            raise InputError(f"output_type={output_type!r} is not 'np', 'pt' or 'latent'.")
        if num_waveforms_per_prompt < 1:
            raise InputError(f"num_waveforms_per_prompt={num_waveforms_per_prompt} is below 1.")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InputError(
                f"callback_on_step_end_tensor_inputs has {', '.join(sorted(unknown))}; there is"
                f" only {', '.join(self._callback_tensor_inputs)}."
            )
        text = _one_of(caption=caption, prompt=prompt)
        labels, captions, negative = (
            [value for value in column for _ in range(num_waveforms_per_prompt)]
            for column in _columns(label=label, caption=text, negative_prompt=negative_prompt)
        )
        seconds = _one_of(
            seconds=seconds, audio_length_in_s=audio_length_in_s, audio_end_in_s=audio_end_in_s
        )
        seconds = DEFAULT_SECONDS if seconds is None else seconds
        tokenizer, model = self.tokenizer, self.model
        num_samples = num_samples_of(seconds, tokenizer.sampling_rate)
        frames = tokenizer.autoencoder.num_frames(num_samples)
        known, keep, level = self._kept(audio, sampling_rate, keep_seconds, frames, len(labels))
        with self.progress_bar(total=num_inference_steps) as bar:  # pyright: ignore[reportCallIssue]

            def on_step(index: int, timestep: Any, x: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return x
                tensors = {"latents": x.transpose(1, 2)}
                tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, index, timestep, tensors) or {}
                return changed["latents"].transpose(1, 2) if "latents" in changed else x

            generated = model.sample(
                {
                    "label": label_indices(labels, model.labels),
                    "caption": captions,
                    "negative_caption": negative,
                },
                frames,
                scheduler=self.scheduler,
                steps=num_inference_steps,
                generator=generator or torch.Generator().manual_seed(torch.seed()),
                guidance_scale=guidance_scale,
                noise=None if latents is None else latents.transpose(1, 2),
                known=known,
                keep=keep,
                on_step=on_step,
            ).transpose(1, 2)
        audios: Any = generated
        if output_type != "latent":
            default = tokenizer.default_gain
            level = level if gain is None else float(gain)
            levels = [(model.gain(n) or default) if level is None else level for n in labels]
            audios = self._decode(generated, n_codebooks, levels)[..., :num_samples].cpu()
            audios = audios.numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        if not return_dict:
            return (audios,)
        return LatentDiffusionOutput(audios, tokenizer.sampling_rate, generated)

    def _decode(self, latents: Tensor, n_codebooks: int | None, levels: list[float]) -> Tensor:
        tokenizer, decoder = _on_its_device(self.tokenizer), "continuous"
        if n_codebooks is not None:
            latents = tokenizer.dequantize(tokenizer.quantize(latents, n_codebooks))
            decoder = tokenizer.codes_decoder
        gain = torch.tensor(levels)
        return tokenizer.decode(latents, decoder=decoder, n_codebooks=n_codebooks, gain=gain)

    def _kept(
        self,
        audio: Any,
        rate: int | None,
        ranges: Sequence[tuple[float | int, float | int]],
        frames: int,
        n: int,
    ) -> tuple[Tensor | None, Tensor | None, float | None]:
        """Latents of ``audio`` ``[n, T, D]``, the frames to keep ``[n, T]``, and its level."""
        if (audio is None) != (not ranges):
            raise InputError("Inpainting needs both audio= and keep_seconds=.")
        if audio is None:
            return None, None, None
        tokenizer = _on_its_device(self.tokenizer)
        row = tokenizer.encode_latents(audio, sampling_rate=rate)
        if (channels := row["num_channels"]) > tokenizer.autoencoder.num_channels:
            raise InputError(
                f"audio has {channels} channels, of which the tokenizer codes"
                f" {tokenizer.autoencoder.num_channels} at a time: give the pipeline so many, or"
                " use make_request(), which fills in each channel."
            )
        latents = torch.from_numpy(row["latents"])[:frames, : len(self.model.latents_mean)]
        known = torch.zeros(frames, latents.shape[-1])
        known[: len(latents)] = latents
        # The last frame may contain silence from behind the end, which must not be kept.
        usable = min(row["num_samples"] // tokenizer.hop_length, frames)
        keep = torch.zeros(frames, dtype=torch.bool)
        keep[:usable] = torch.from_numpy(kept_frames(ranges, usable, tokenizer.frame_rate))
        gain = float(np.mean(row["gain"]))
        return known.expand(n, -1, -1), keep.expand(n, -1), gain


def _with_module(config: dict[str, Any]) -> dict[str, Any]:
    classes = {"model": LatentDiffusion.__name__, "tokenizer": LatentTokenizer.__name__}
    named = {name: (__name__, classes[name]) for name in classes if (config.get(name) or [0])[0]}
    return config | named


def _one_of(**values: Any) -> Any:
    """The value of a thing with several names, of which at most one may be given."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} mean the same: give one of them.")
    return next(iter(given.values()), None)


def _columns(**columns: Any) -> list[list[str | None]]:
    """Lists of equal length; a single value is repeated."""
    lists = {k: [x] if x is None or isinstance(x, str) else list(x) for k, x in columns.items()}
    count = max(map(len, lists.values()))
    lists = {name: values * count if len(values) == 1 else values for name, values in lists.items()}
    if any(len(values) != count for values in lists.values()):
        lengths = ", ".join(f"{len(values)} of {name}" for name, values in lists.items())
        raise InputError(f"The numbers of conditions do not fit each other: {lengths}.")
    return list(lists.values())


def _on_its_device(tokenizer: LatentTokenizer) -> LatentTokenizer:
    """The tokenizer, which `DiffusionPipeline.enable_model_cpu_offload` may have moved away.

    Its hooks expect that models are used by calling them.
    """
    hook: Any = getattr(tokenizer, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(tokenizer)
    return tokenizer


# `DiffusionPipeline.from_pretrained` looks for the classes of pipelines there.
setattr(diffusers, LatentDiffusionPipeline.__name__, LatentDiffusionPipeline)
