"""The configuration that a `LatentTokenizer` checkpoint carries as ``config.json``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from tokenizer.errors import InputError
from tokenizer.model.validation import check_numbers

FORMAT_VERSION = 1

# Audio louder than this by its root mean square is no audio: full scale is 1.
MAX_GAIN = 1e6


class LatentTokenizerConfig(PreTrainedConfig):
    """Which autoencoder, which quantizer, which decoders.

    Args:
        autoencoder: ``{"kind": ..., **Autoencoder.to_config()}``.
        quantizer: ``{"kind": ..., **Quantizer.to_config()}``; None before `fit`.
        has_finetuned_decoder: Whether there is a decoder finetuned on quantized latents.
        default_gain: Root mean square of audio of which no gain is known, e.g. of generated codes.
        format_version: Of this checkpoint; newer ones than the library knows are refused.
        weights_checksum: Of the weights that belong to it; None for a model that was never saved,
            or by an early version.
        kwargs: What transformers adds to every configuration.

    Raises:
        ValueError: If a value has the wrong type, or is a number that no real model has.
    """

    model_type = "latent_tokenizer"

    def __init__(
        self,
        autoencoder: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        has_finetuned_decoder: bool = False,
        default_gain: float = 0.1,
        format_version: int = FORMAT_VERSION,
        weights_checksum: str | None = None,
        **kwargs: Any,
    ) -> None:
        for name, part in (("autoencoder", autoencoder), ("quantizer", quantizer)):
            if part is not None and not isinstance(part, dict):
                raise InputError(f"config.{name} is {part!r:.60}; expected an object with a kind.")
            check_numbers(part, name)
        if not isinstance(has_finetuned_decoder, bool):
            raise InputError(f"has_finetuned_decoder={has_finetuned_decoder!r:.60} is no bool.")
        if type(format_version) is not int or format_version < 1:
            raise InputError(f"format_version={format_version!r:.60} is no version.")
        if isinstance(default_gain, bool) or not isinstance(default_gain, (int, float)):
            raise InputError(f"default_gain={default_gain!r:.60} is no number.")
        if not 0 < default_gain <= MAX_GAIN:
            raise InputError(f"default_gain={default_gain} is not in (0, {MAX_GAIN:g}].")
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.has_finetuned_decoder = has_finetuned_decoder
        self.default_gain = default_gain
        self.format_version = format_version
        self.weights_checksum = weights_checksum
        super().__init__(**kwargs)

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> Any:  # transformers' own: a configuration, and with return_unused_kwargs the rest
        """Makes a configuration of the content of a ``config.json``; ``kwargs`` as in transformers.

        Only what a tokenizer is made of is taken. transformers acts on many other keys: one names
        a repository whose code is to compute attention, others load packages or make tables of any
        size.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise InputError(f"config.json is of a {kind!r:.60} model, not a {cls.model_type}.")
        known = {key: value for key, value in config_dict.items() if key in _TAKEN}
        return super().from_dict(known, **kwargs)


_TAKEN = {
    "autoencoder", "quantizer", "has_finetuned_decoder", "default_gain", "format_version",
    "weights_checksum", "model_type", "_commit_hash",
}  # fmt: skip
