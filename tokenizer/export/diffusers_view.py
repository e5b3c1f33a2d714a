"""The tokenizer as diffusion pipelines know autoencoders: `DiffusersView`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.outputs import BaseOutput
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.core_config import FIELDS, own_values
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.validation import (
    check_stored,
    check_values,
    checkpoint_folder,
    read_config,
    weights_checksum,
)
from tokenizer.networks.filling import memoryless
from tokenizer.saving import damage_named, load_pretrained, save_pretrained

KIND = "view of a tokenizer"
WEIGHTS = "diffusion_pytorch_model"  # as `diffusers` names the file


@dataclass
class PointDistribution:
    """A distribution that is certain: the encoder is deterministic."""

    mean: Float[Tensor, "B D T"]

    @property
    def std(self) -> Float[Tensor, "B D T"]:
        """Zero everywhere."""
        return torch.zeros_like(self.mean)

    def mode(self) -> Float[Tensor, "B D T"]:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "B D T"]:
        """The mean; ``generator`` is taken as pipelines pass one."""
        del generator
        return self.mean

    def kl(self, other: Any = None) -> Float[Tensor, " 1"]:
        """Zero, as for the deterministic distributions of `diffusers`."""
        del other
        return self.mean.new_zeros(1)


@dataclass
class ViewEncoderOutput(BaseOutput):
    """What ``encode`` returns: ``latent_dist``."""

    latent_dist: PointDistribution


@dataclass
class ViewDecoderOutput(BaseOutput):
    """What ``decode`` returns: ``sample``, audio ``[B, C, N]``."""

    sample: Float[Tensor, "B C N"]


class DiffusersView(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Presents a tokenizer's continuous side with the calls of ``diffusers.AutoencoderOobleck``.

    Pipelines hold, save and load it like their own autoencoders. T frames stand for exactly
    ``T * hop_length`` samples: where the tokenizer's encoder returns one frame more, the view
    leaves it out and decodes silence in its place, so that the last hop fades out.

    Latents are normalised to mean 0 and deviation 1 in every channel, as diffusion models want
    them; `decode` undoes it. Models that normalise loudness decode at the checkpoint's default
    level, as a generated latent has no gain. Everything is computed in float32 and without
    gradients.

    Args:
        tokenizer: Its encoder and continuous decoder are used; or the values of its configuration.
        normalized: Whether latents are normalised; False gives them as the encoder makes them.

    Attributes:
        model: The tokenizer.
        sampling_rate: Hz.
        hop_length: Samples per latent frame.
    """

    # Items are coded one by one, and long audio in tiles, whether a pipeline asks for it or not.
    use_slicing = True
    use_tiling = True
    config_name = "config.json"
    _no_split_modules = ("LatentTokenizer",)  # It is on one device.

    def __init__(
        self, tokenizer: LatentTokenizer | dict[str, Any], normalized: bool = True
    ) -> None:
        super().__init__()
        if isinstance(tokenizer, dict):
            tokenizer = LatentTokenizer(LatentTokenizerConfig(**own_values(tokenizer)))
        # Not self.tokenizer: `diffusers` looks up names of the configuration there.
        self.model, self.normalized = tokenizer, normalized
        self.sampling_rate, self.hop_length = tokenizer.sampling_rate, tokenizer.hop_length
        self._describe()

    def _describe(self, **changes: Any) -> None:
        self.model.update_config()
        parts = {name: deepcopy(getattr(self.model.config, name)) for name in FIELDS}
        self.register_to_config(
            tokenizer=parts | changes, normalized=self.normalized, **self._read_by_pipelines()
        )

    def _read_by_pipelines(self) -> dict[str, int]:
        return {
            "sampling_rate": self.sampling_rate,
            "audio_channels": self.model.autoencoder.num_channels,
            "decoder_input_channels": self.model.latent_dim,
            "hop_length": self.hop_length,
        }

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """What ``__init__`` takes of a ``config.json``; the rest follows from it."""
        own = {k: v for k, v in config_dict.items() if k in ("tokenizer", "normalized")}
        return super().extract_init_dict(own, **kwargs)

    @apply_forward_hook
    def encode(
        self, x: Float[Tensor, "B C N"], return_dict: bool = True
    ) -> ViewEncoderOutput | tuple[PointDistribution]:
        """Audio to a (certain) distribution of ``ceil(N / hop_length)`` latent frames."""
        z = self.model.encode(x).latents[..., : -(-x.shape[-1] // self.hop_length)]
        z = self.model.normalize_latents(z) if self.normalized else z
        distribution = PointDistribution(z.detach())
        return ViewEncoderOutput(distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(
        self,
        z: Float[Tensor, "B D T"],
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> ViewDecoderOutput | tuple[Tensor]:
        """Latents to audio of ``T * hop_length`` samples.

        Args:
            z: As `encode` gives them.
            return_dict: False for a tuple.
            generator: Taken as pipelines pass one; nothing is random.
        """
        del generator
        z = z.to(self.device, torch.float32)
        z = self.model.denormalize_latents(z) if self.normalized else z
        samples = z.shape[-1] * self.hop_length
        missing = self.model.autoencoder.num_frames(samples) - z.shape[-1]
        audio = self.model.decode(functional.pad(z, (0, missing)), decoder="continuous")
        return ViewDecoderOutput(audio[..., :samples]) if return_dict else (audio[..., :samples],)

    def forward(
        self, sample: Float[Tensor, "B C N"], return_dict: bool = True
    ) -> ViewDecoderOutput | tuple[Tensor]:
        """Audio to latents and back, up to the end of its last frame."""
        z = self.encode(sample)[0].mode()
        return self.decode(z, return_dict=return_dict)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **kwargs: Any
    ) -> None:
        """Saves the view, as a whole or not at all; arguments as for ``diffusers.ModelMixin``."""
        self._describe(weights_checksum=weights_checksum(self.model.state_dict()))
        save_pretrained(super().save_pretrained, save_directory, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> Any:
        """Loads what `save_pretrained` wrote; arguments as for ``diffusers.ModelMixin``.

        ``dtype`` changes nothing, as for `LatentTokenizer.from_pretrained`. ValueError if it
        is damaged.
        """
        for unused in ("dtype", "torch_dtype"):
            kwargs.pop(unused, None)
        want_info = kwargs.pop("output_loading_info", False)
        name, load = str(pretrained_model_name_or_path), super().from_pretrained
        folder = checkpoint_folder(name, kwargs.get("subfolder") or "")
        with damage_named(name, KIND):
            if folder is not None:
                with memoryless():
                    empty: Any = cls.from_config(read_config(folder / cls.config_name))
                weights = empty.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
                check_stored(weights, folder, kwargs.get("variant"), WEIGHTS)
        view, info = load_pretrained(load, name, KIND, **kwargs)
        for tensor in chain(view.parameters(), view.buffers()):
            if tensor.is_floating_point():  # Weights may be stored in half precision.
                tensor.data = tensor.data.float()
        checksum = view.config["tokenizer"]["weights_checksum"]
        check_values(view.model.state_dict(), checksum, name)
        return (view, info) if want_info else view
