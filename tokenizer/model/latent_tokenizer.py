"""`LatentTokenizer`: the tokenizer as a model of `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, EncodecFeatureExtractor, PreTrainedModel
from transformers.utils.generic import ModelOutput

from tokenizer.errors import InputError, MissingFileError
from tokenizer.model.checkpoint import KIND, empty_model
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.core import TokenizerCore
from tokenizer.model.parts import DecoderName
from tokenizer.model.validation import check_values, checkpoint_folder, weights_checksum
from tokenizer.saving import load_pretrained, save_pretrained

T = TypeVar("T", bound="LatentTokenizer")


@dataclass
class CodecOutput(ModelOutput):
    """What calling a `LatentTokenizer` returns, in the terms of the codecs of `transformers`.

    Attributes:
        audio_values: ``[B, C, N]``; zero past the end of shorter items.
        audio_codes: ``[B, n, T]``.
    """

    audio_values: Float[Tensor, "B C N"] | None = None
    audio_codes: Int[Tensor, "B n T"] | None = None


class LatentTokenizer(TokenizerCore, PreTrainedModel):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """Audio to continuous latents and discrete codes, and back.

    Everything that it computes is in `TokenizerCore`; here it is loaded and saved like other models
    of ``transformers``, and refuses what does not fit.
    """

    config_class = LatentTokenizerConfig
    config: LatentTokenizerConfig
    base_model_prefix = "latent_tokenizer"
    main_input_name = "input_values"

    def __init__(self, config: LatentTokenizerConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.build()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # transformers would otherwise re-initialise every linear and convolutional layer.
        del module

    def decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        latents: Float[Tensor, "B D T"] | None = None,
        *,
        audio_codes: Int[Tensor, "B n T"] | None = None,
        decoder: DecoderName | None = None,
        n_codebooks: int | None = None,
        gain: Float[Tensor, " B"] | None = None,
    ) -> Any:
        """Decodes latents into audio, or codes as the codecs of `transformers` do.

        Args:
            latents: See `TensorTokenizer.decode`, as for the other arguments.
            audio_codes: Instead of latents.
            decoder: Which one.
            n_codebooks: Of dequantized latents.
            gain: What `encode` divided by.

        Returns:
            Audio ``[B, C, N]`` of latents, a `CodecOutput` of codes.
        """
        if (latents is None) == (audio_codes is None):
            raise InputError("decode takes latents or audio_codes: give one of them.")
        if audio_codes is None:
            return super().decode(latents, decoder=decoder, n_codebooks=n_codebooks, gain=gain)  # pyright: ignore
        n, latents = audio_codes.shape[1], self.dequantize(audio_codes)
        return CodecOutput(super().decode(latents, decoder=decoder, n_codebooks=n, gain=gain))

    def forward(
        self,
        input_values: Float[Tensor, "B C N"],
        padding_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | None = None,
        *,
        n_codebooks: int | None = None,
        return_dict: bool | None = None,
    ) -> CodecOutput | tuple[Any, ...]:
        """Audio to codes and back, at the same length.

        Args:
            input_values: See `encode`.
            padding_mask: See `encode`.
            n_codebooks: See `quantize`.
            return_dict: False for a tuple. Default: the configuration's, which is True.
        """
        encoded = self.encode(input_values, padding_mask)
        codes = self.quantize(encoded.latents, n_codebooks)
        out = self.decode(audio_codes=codes, gain=encoded.gain)
        out.audio_values = out.audio_values[..., : input_values.shape[-1]]
        if padding_mask is not None:
            out.audio_values = out.audio_values * padding_mask.to(out.audio_values)[:, None]
        out.audio_codes = codes
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return out if wants_dict else out.to_tuple()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, **kwargs: Any
    ) -> Any:  # A tokenizer; with output_loading_info=True also what was loaded.
        """Loads a checkpoint folder or hub repository, in float32.

        Args:
            pretrained_model_name_or_path: A folder, or "user/model" on the hub; None if ``config``
                and ``state_dict`` are given.
            kwargs: As for ``transformers.PreTrainedModel.from_pretrained``, such as ``subfolder``
                and ``variant``. Two of them change nothing: ``dtype``, which pipelines pass, as a
                tokenizer computes in float32 (another precision would give other codes), and
                ``attn_implementation``, as its networks have no attention.

        Raises:
            FileNotFoundError: If a folder was named that is not there or holds no checkpoint.
            ValueError: If it is damaged, or its weights are not those of its configuration.
        """
        source, weights = pretrained_model_name_or_path, kwargs.get("state_dict")
        name = "state_dict" if source is None else str(source)
        folder = None
        if source is not None:
            folder = checkpoint_folder(name, **kwargs)
        for unused in ("torch_dtype", "attn_implementation"):
            kwargs.pop(unused, None)
        kwargs["dtype"] = torch.float32
        want_info = kwargs.pop("output_loading_info", False)
        # Other sizes are ignored only to be named: transformers' own error refers to its log.
        kwargs["ignore_mismatched_sizes"] = True

        def load(_: str, **options: Any) -> Any:
            if folder is not None and weights is None:
                empty_model(cls, folder, kwargs.get("variant"))
            return super(LatentTokenizer, cls).from_pretrained(source, **options)

        try:
            model, info = load_pretrained(load, name, KIND, **kwargs)
        except OSError as error:
            if folder is not None or source is None:
                raise
            text = f"{name} is no folder here, and the hub gives no such model: {error}"
            raise MissingFileError(text) from error
        checksum = model.config.weights_checksum if weights is None else None
        check_values(model.state_dict(), checksum, name)
        return (model, info) if want_info else model

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        *,
        half: bool | torch.dtype = False,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves configuration, weights and feature extractor, each as a whole or not at all.

        Args:
            save_directory: A folder, made if it is not there; other files in it stay.
            half: Whether to store matrices in float16, or in what type (``torch.bfloat16``), for
                half the size. Rounding makes another tokenizer of it, with another fingerprint, but
                nearly as good. It is loaded in float32.
            variant: Put into the names of the files of weights, e.g. "fp16".
            max_shard_size: Size of a file of weights, e.g. "5GB".
            kwargs: Further arguments of ``transformers.PreTrainedModel.save_pretrained``.
        """
        if half:
            dtype = torch.float16 if isinstance(half, bool) else half
            kwargs["state_dict"] = {
                name: value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
                for name, value in self.state_dict().items()
            }
        self.update_config()
        self.config.weights_checksum = weights_checksum(kwargs.get("state_dict", self.state_dict()))
        channels, rate = self.autoencoder.num_channels, self.sampling_rate

        def save(folder: Path, **options: Any) -> None:
            super(LatentTokenizer, self).save_pretrained(folder, **options)
            EncodecFeatureExtractor(channels, rate).save_pretrained(folder)

        # Pipelines of diffusers pass on the arguments that they find in this signature.
        kwargs |= {"variant": variant, "max_shard_size": max_shard_size}
        save_pretrained(save, save_directory, **kwargs)


AutoModel.register(LatentTokenizerConfig, LatentTokenizer)
if hasattr(transformers, "AutoModelForAudioTokenization"):  # Early versions lack it.
    transformers.AutoModelForAudioTokenization.register(LatentTokenizerConfig, LatentTokenizer)
