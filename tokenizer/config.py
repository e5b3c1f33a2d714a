"""The configuration that a `LatentTokenizer` checkpoint carries as ``config.json``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

FORMAT_VERSION = 1


class LatentTokenizerConfig(PreTrainedConfig):
    """Which autoencoder, which quantizer, which decoders.

    Args:
        autoencoder: ``{"kind": ..., **Autoencoder.to_config()}``.
        quantizer: ``{"kind": ..., **Quantizer.to_config()}``; None before `fit`.
        has_finetuned_decoder: Whether a decoder finetuned on quantized latents is there besides the
            continuous one.
        default_gain: Root mean square that audio gets for which no gain is known, e.g. generated
            codes.
        format_version: Of this checkpoint; newer ones than the library knows are refused.
        kwargs: What transformers adds to every configuration.
    """

    model_type = "latent_tokenizer"

    def __init__(
        self,
        autoencoder: dict[str, Any] | None = None,
        quantizer: dict[str, Any] | None = None,
        has_finetuned_decoder: bool = False,
        default_gain: float = 0.1,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.has_finetuned_decoder = has_finetuned_decoder
        self.default_gain = default_gain
        self.format_version = format_version
        super().__init__(**kwargs)
