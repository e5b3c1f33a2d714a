"""`LatentTokenizer`: the tokenizer as a model of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedModel

from tokenizer.model.checkpoint import KIND, empty_model
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.core import TokenizerCore
from tokenizer.model.validation import check_values, checkpoint_folder, weights_checksum
from tokenizer.saving import load_pretrained, save_pretrained

T = TypeVar("T", bound="LatentTokenizer")


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

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[T], pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> T:
        """Loads a checkpoint folder or hub repository, in float32.

        Args:
            pretrained_model_name_or_path: A folder, or "user/model" on the hub.
            kwargs: As for ``transformers.PreTrainedModel.from_pretrained``, such as ``subfolder``
                and ``variant``. ``dtype``, which pipelines pass, changes nothing: a tokenizer
                computes in float32, as another precision would give other codes.

        Raises:
            FileNotFoundError: If a folder was named that is not there or holds no checkpoint.
            ValueError: If it is damaged, or its weights are not those of its configuration.
        """
        name = str(pretrained_model_name_or_path)
        folder = checkpoint_folder(name, kwargs.get("subfolder") or "")
        kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = torch.float32
        want_info = kwargs.pop("output_loading_info", False)
        # Other sizes are ignored only to be named: transformers' own error refers to its log.
        kwargs["ignore_mismatched_sizes"] = True

        def load(name: str, **options: Any) -> Any:
            if folder is not None:
                empty_model(cls, folder, kwargs.get("variant"))
            return super(LatentTokenizer, cls).from_pretrained(name, **options)

        model, info = load_pretrained(load, name, KIND, **kwargs)
        check_values(model.state_dict(), model.config.weights_checksum, name)
        return (model, info) if want_info else model  # pyright: ignore[reportReturnType]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, half: bool = False, **kwargs: Any
    ) -> None:
        """Saves ``config.json`` and ``model.safetensors``, each as a whole or not at all.

        Args:
            save_directory: A folder, made if it is not there; other files in it stay.
            half: Whether to store matrices in float16, for half the size. Rounding makes another
                tokenizer of it, with another fingerprint, but nearly as good.
            kwargs: As for ``transformers.PreTrainedModel.save_pretrained``.
        """
        if half:
            kwargs["state_dict"] = {
                name: value.half() if value.is_floating_point() and value.ndim > 1 else value
                for name, value in self.state_dict().items()
            }
        self.update_config()
        self.config.weights_checksum = weights_checksum(kwargs.get("state_dict", self.state_dict()))
        save_pretrained(super().save_pretrained, save_directory, **kwargs)


AutoModel.register(LatentTokenizerConfig, LatentTokenizer)
if hasattr(transformers, "AutoModelForAudioTokenization"):  # Early versions lack it.
    transformers.AutoModelForAudioTokenization.register(LatentTokenizerConfig, LatentTokenizer)
