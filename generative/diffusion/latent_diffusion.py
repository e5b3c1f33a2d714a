"""`LatentDiffusion`: flow matching on the tokenizer's continuous latents.

Latents x of mean 0 and deviation 1 in every channel and Gaussian noise n are mixed as
``(1 - sigma) x + sigma n``. The network learns the velocity ``n - x`` (Lipman et al., 2023), with
sigma drawn from a logit-normal distribution (Esser et al., 2024, Stable Diffusion 3). Schedulers of
`diffusers` integrate the velocity from noise to latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Bool, Float
from torch import Tensor

from generative.conditioning import Conditioner, extrapolate
from generative.diffusion.transformer import TRAIN_TIMESTEPS, DiffusionTransformer
from generative.protocol import (
    MAX_DEPTH,
    MAX_WIDTH,
    Batch,
    ConditionedModel,
    GenerationRequest,
    TokenRow,
    check_prompt_length,
)
from tokenizer.devices import generator_on, send
from tokenizer.errors import InputError
from tokenizer.hub import check_name
from tokenizer.saving import load_pretrained

# What hundreds of frames share, such as level and timbre, is visible through more noise than a
# single frame. It is decided at high noise, so more steps belong there (Esser et al., 2024, section
# 5.3.2, on large images).
SHIFT = 3.0

Scheduler = FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler


def make_scheduler(solver: str = "euler", shift: float | int = SHIFT) -> Scheduler:
    """Makes a scheduler for flow matching.

    Args:
        solver: "euler" or "dpm++" (second order, multistep).
        shift: Above 1, more of the steps are at high noise.
    """
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(TRAIN_TIMESTEPS, shift=shift)
    if solver != "dpm++":
        raise InputError(f"solver={solver!r} is neither 'euler' nor 'dpm++'.")
    return DPMSolverMultistepScheduler(
        TRAIN_TIMESTEPS,
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )


def set_steps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Sets the noise levels of ``steps`` evaluations.

    Euler's default wastes its last evaluation between sigma 0.001 and 0. Equal steps from 1 to 0,
    before the shift, are what the flow matching pipelines of `diffusers` use.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = np.linspace(1.0, 1.0 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        return
    with warnings.catch_warnings():
        # NumPy warns about code of `diffusers` and torch.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps, device=device)


def draw_noise(
    shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator]
) -> Tensor:
    """Draws Gaussian noise, by one generator or by one an item of the batch.

    It is on the device of the generators. Only those on the CPU draw the same on every machine.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise InputError(f"{len(generator)} generators for {shape[0]} clips.")
    return torch.stack([draw_noise(shape[1:], each) for each in generator])


class LatentDiffusion(ConditionedModel, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A diffusion transformer, its conditions and the statistics of the latents.

    Args:
        latent_dim: D of the tokenizer.
        labels: Names of the classes to condition on.
        text_encoder: A `transformers` text encoder (name or folder) for captions; None for none.
        width: Width of the transformer; an even multiple of ``heads``.
        depth: Blocks of the transformer.
        heads: Attention heads.
        patch_frames: Latent frames per token of the transformer.
        condition_dropout: Share of training items whose conditions are hidden; guidance needs it.
        logit_mean: Mean of the logit of sigma in training.
        logit_std: Deviation of the logit of sigma in training.
        shift: Shift of the sampling schedule; see `make_scheduler`.
        gains: Median root mean square level of the training rows of each class, and under "" of
            all: latents represent audio at level 1.
        fingerprint: Identifies the encoder that made the latents; only its tokenizer decodes them.

    Attributes:
        latents_mean: Buffer ``[D]``, set by `set_statistics`.
        latents_std: Buffer ``[D]``, set by `set_statistics`.
    """

    column = "latents"
    latents_mean: Tensor
    latents_std: Tensor

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        labels: Sequence[str] = (),
        text_encoder: str | None = None,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        patch_frames: int = 2,
        condition_dropout: float | int = 0.1,
        logit_mean: float | int = 0.0,  # noqa: ARG002
        logit_std: float | int = 1.0,  # noqa: ARG002
        shift: float | int = SHIFT,  # noqa: ARG002
        gains: Mapping[str, float] | None = None,  # noqa: ARG002
        fingerprint: str | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        if depth > MAX_DEPTH or width > MAX_WIDTH or latent_dim > MAX_WIDTH:
            raise InputError(
                f"width={width}, depth={depth}, latent_dim={latent_dim}: at most {MAX_WIDTH}, "
                f"{MAX_DEPTH} and {MAX_WIDTH} are allowed."
            )
        self.conditioner = Conditioner(
            width, labels=tuple(labels), text_encoder=text_encoder, dropout=condition_dropout
        )
        self.transformer = DiffusionTransformer(
            latent_dim, width, depth, heads, patch_frames, condition_width=width
        )
        self.register_buffer("latents_mean", torch.zeros(latent_dim))
        self.register_buffer("latents_std", torch.ones(latent_dim))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> LatentDiffusion:
        """Loads a folder or hub repository; arguments as for ``diffusers.ModelMixin``."""
        if "dtype" in kwargs:  # The name in `transformers`.
            kwargs["torch_dtype"] = kwargs.pop("dtype")
        # Models made on the "meta" device lack whatever is not in the file, e.g. text encoders.
        kwargs["low_cpu_mem_usage"] = False
        want_info = kwargs.pop("output_loading_info", False)
        name, load = str(pretrained_model_name_or_path), super().from_pretrained
        check_name(name, **kwargs)
        model, info = load_pretrained(load, name, "diffusion model", **kwargs)
        if kwargs.get("torch_dtype") is None:
            # Weights may be stored in half precision; the model computes in float32.
            model = model.float()
        return (model, info) if want_info else model  # pyright: ignore[reportReturnType]

    def set_statistics(self, mean: Float[Tensor, " D"], std: Float[Tensor, " D"]) -> None:
        """Sets the mean and deviation of the latents, usually the tokenizer's."""
        if not bool((std > 0).all()):
            raise InputError(f"std must be positive, but its least value is {float(std.min()):g}.")
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)

    def normalize(self, latents: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Mean 0 and deviation 1 in every channel."""
        return (latents - self.latents_mean) / self.latents_std

    def denormalize(self, latents: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Inverse of `normalize`."""
        return latents * self.latents_std + self.latents_mean

    # Training

    def draw_sigmas(self, count: int, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Draws sigmas from the logit-normal distribution, stratified over the batch.

        Each item draws from another of B equal parts of the distribution, which makes the loss less
        noisy than independent draws. A single sigma has the logit-normal distribution.
        """
        order = torch.randperm(count, generator=generator)
        uniform = (order + torch.rand(count, generator=generator)) / count
        normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).float()
        return torch.sigmoid(self.config["logit_mean"] + self.config["logit_std"] * normal)

    def training_loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the velocity over all frames but padding.

        The generator, on the CPU, draws sigmas, which conditions are hidden in training mode, and
        the noise or, on another device, the seed of it. A mask on the CPU is read without waiting.
        """
        device = self.latents_mean.device
        data, mask = send(batch["latents"], device), batch["mask"]
        # Without padding attention needs no mask.
        frame_mask = None if bool(mask.all()) else send(mask, device)
        sigma = send(self.draw_sigmas(len(data), generator), device)
        noise = draw_noise(tuple(data.shape), generator_on(device, generator))
        hiding = generator if self.training else None
        condition, condition_mask = self.conditioner(batch, generator=hiding)
        share = sigma[:, None, None]
        noisy = (1 - share) * data + share * noise
        velocity = self.transformer(
            noisy, sigma * TRAIN_TIMESTEPS, condition, condition_mask, frame_mask=frame_mask
        ).sample
        error = (velocity.float() - (noise - data)).square().mean(-1)
        if frame_mask is None:
            return {"loss": error.mean()}
        return {"loss": (error * frame_mask).sum() / frame_mask.sum()}

    # Sampling

    @apply_forward_hook  # A pipeline that offloads models brings this one to its device.
    @torch.no_grad()
    def sample(
        self,
        conditions: Mapping[str, Any],
        num_frames: int,
        *,
        scheduler: Any,
        steps: int,
        generator: torch.Generator | Sequence[torch.Generator],
        guidance_scale: float | int = 1.0,
        noise: Float[Tensor, "B T D"] | None = None,
        known: Float[Tensor, "B T D"] | None = None,
        keep: Bool[Tensor, "B T"] | None = None,
        on_step: Callable[[int, Any, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Samples latents in the tokenizer's scale.

        Args:
            conditions: ``label`` int64 ``[B]``, ``caption``, a list of B, and optionally
                ``negative_caption``, which guidance leads away from.
            num_frames: T.
            scheduler: From `make_scheduler`, or another flow matching scheduler of `diffusers`.
            steps: Evaluations of the model.
            generator: On the CPU, the noise is the same on every device. Or one an item, which
                makes the noise of an item independent of the others.
            guidance_scale: Scale of classifier-free guidance; 1 for none.
            noise: Gaussian noise to start from. Default: drawn by the generator.
            known: Latents of which some frames are kept, for inpainting and continuation.
            keep: True for the frames to keep, which the result holds unchanged.
            on_step: Called after every step with its index, its timestep and the normalised
                latents; returns the latents to continue with.
        """
        device = self.latents_mean.device
        labels = conditions["label"]
        shape = (len(labels), num_frames, len(self.latents_mean))
        if (known is None) != (keep is None):
            raise InputError("Inpainting needs both known= and keep=.")
        noise = draw_noise(shape, generator) if noise is None else noise
        if noise.shape != shape:
            raise InputError(f"noise has shape {list(noise.shape)}, expected {list(shape)}.")
        noise = noise.to(device)
        target = None if known is None else self.normalize(known.to(noise))
        if target is not None and target.shape != noise.shape:
            raise InputError(f"known has shape {list(target.shape)}, expected {list(shape)}.")
        imposed = None if keep is None else keep.to(device)[..., None]

        condition, condition_mask = self.conditioner.with_guidance(conditions, guidance_scale)
        set_steps(scheduler, steps, device)
        x = noise
        for index, timestep in enumerate(scheduler.timesteps):
            share = (scheduler.sigmas[index] * TRAIN_TIMESTEPS).to(x).expand(len(condition))
            copies = x.repeat(len(condition) // len(x), 1, 1)
            velocity = self.transformer(copies, share, condition, condition_mask).sample
            velocity = extrapolate(velocity, guidance_scale)
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
            if target is not None and imposed is not None:
                sigma = scheduler.sigmas[index + 1].to(device)
                x = torch.where(imposed, (1 - sigma) * target + sigma * noise, x)
            if on_step is not None:
                x = on_step(index, timestep, x)
        out = self.denormalize(x)
        return out if known is None or imposed is None else torch.where(imposed, known.to(out), out)

    def generate_rows(
        self, request: GenerationRequest, generator: torch.Generator
    ) -> list[TokenRow]:
        """Rows with ``latents`` float32 ``[T, D]`` for the tokenizer's ``decode_latents``.

        Prompts are rows with ``latents``, which stay unchanged: all of them, or those frames for
        which ``keep`` is true.
        """
        known, keep = self._prompts(request)
        settings = request.diffusion
        latents = self.sample(
            request.conditions(self.labels),
            request.num_frames,
            scheduler=make_scheduler(settings.solver, self.config["shift"]),
            steps=settings.steps,
            generator=generator,
            guidance_scale=request.guidance_scale,
            known=known,
            keep=keep,
        )
        return [
            {"latents": item.cpu().numpy()} | request.columns(index, self.gain(label))
            for index, (item, label) in enumerate(zip(latents, request.labels, strict=True))
        ]

    def _prompts(self, request: GenerationRequest) -> tuple[Tensor | None, Tensor | None]:
        if not any(prompt is not None for prompt in request.prompts):
            return None, None
        shape = (request.batch_size, request.num_frames)
        known = torch.zeros(*shape, len(self.latents_mean))
        keep = torch.zeros(shape, dtype=torch.bool)
        for index, prompt in enumerate(request.prompts):
            if prompt is None:
                continue
            frames = torch.as_tensor(np.asarray(prompt["latents"], dtype=np.float32))
            kept = torch.ones(len(frames), dtype=torch.bool)
            if prompt.get("keep") is not None:
                kept = torch.as_tensor(prompt["keep"])[: request.num_frames]
                frames = frames[: request.num_frames]
            check_prompt_length(int(kept.sum()), request.num_frames)
            known[index, : len(frames)] = frames[:, : known.shape[-1]]
            keep[index, : len(frames)] = kept
        return known, keep
