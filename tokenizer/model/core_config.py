"""What a tokenizer consists of, as its ``config.json`` says: `TokenizerConfig`."""

from __future__ import annotations

from typing import Any

from tokenizer.errors import InputError
from tokenizer.model.validation import check_numbers

FORMAT_VERSION = 1
MODEL_TYPE = "latent_tokenizer"

# Audio louder than this by its root mean square is no audio: full scale is 1.
MAX_GAIN = 1e6


class TokenizerConfig:
    """Which autoencoder, which quantizer, which decoders.

    Args:
        autoencoder: ``{"kind": ..., **Autoencoder.to_config()}``.
        quantizer: ``{"kind": ..., **Quantizer.to_config()}``; None before `fit`.
        has_finetuned_decoder: Whether there is a decoder finetuned on quantized latents.
        default_gain: Root mean square of audio of which no gain is known, e.g. of generated codes.
        format_version: Of this checkpoint; newer ones than the library knows are refused.
        weights_checksum: Of the weights that belong to it; None for a model that was never saved,
            or by an early version.

    Raises:
        ValueError: If a value has the wrong type, or is a number that no real model has.
    """

    def __init__(
        self,
        autoencoder: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        has_finetuned_decoder: bool = False,
        default_gain: float = 0.1,
        format_version: int = FORMAT_VERSION,
        weights_checksum: str | None = None,
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """Makes a configuration of the content of a ``config.json``; see `own_values`."""
        return cls(**own_values(config_dict))


FIELDS = tuple(vars(TokenizerConfig()))


def own_values(content: dict[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says about a tokenizer; ValueError if it is of another model.

    transformers acts on many other keys: one names a repository whose code is to compute
    attention, others load packages or make tables of any size.
    """
    kind = content.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise InputError(f"config.json is of a {kind!r:.60} model, not a {MODEL_TYPE}.")
    return {key: value for key, value in content.items() if key in FIELDS}
