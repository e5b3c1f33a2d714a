"""``transformers.DacModel`` as an autoencoder: its encoder and decoder, without its quantizer."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import DacConfig, DacModel

from tokenizer.autoencoders.strided import StridedAutoencoder


class DacAutoencoder(StridedAutoencoder):
    """DAC. Its latents are what its encoder returns and its own quantizer would take."""

    kind: ClassVar[str] = "dac"
    fields: ClassVar[tuple[str, ...]] = (
        "sampling_rate",
        "hidden_size",
        "encoder_hidden_size",
        "decoder_hidden_size",
        "downsampling_ratios",
        "upsampling_ratios",
    )

    def __init__(self, model: DacModel) -> None:
        super().__init__(model, latent_dim=model.config.hidden_size, num_channels=1)

    @classmethod
    def model_class(cls) -> type[DacModel]:
        """``transformers.DacModel``."""
        return DacModel

    @classmethod
    def untrained(cls, config: dict[str, Any]) -> DacModel:
        """See `LibraryAutoencoder.untrained`."""
        return DacModel(DacConfig(**config, n_codebooks=1))
