"""``diffusers.AutoencoderOobleck`` (Stable Audio) as an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tokenizer.autoencoders.strided import StridedAutoencoder, modern_weight_norm
from tokenizer.errors import InputError, import_extra

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]


class OobleckAutoencoder(StridedAutoencoder):
    """Oobleck, stereo by default. Its latents are the mean of its posterior, never a sample.

    The model's weight normalisation is replaced by torch's newer one of the same values.

    Raises:
        ValueError: If the encoder does not return a mean and a scale for each input of the decoder.
    """

    kind: ClassVar[str] = "oobleck"
    fields: ClassVar[tuple[str, ...]] = (
        "encoder_hidden_size",
        "downsampling_ratios",
        "channel_multiples",
        "decoder_channels",
        "decoder_input_channels",
        "audio_channels",
        "sampling_rate",
    )

    def __init__(self, model: AutoencoderOobleck) -> None:
        config: Any = model.config  # its fields are attributes, too
        if config.encoder_hidden_size != 2 * config.decoder_input_channels:
            raise InputError(
                f"encoder_hidden_size={config.encoder_hidden_size} is not twice "
                f"decoder_input_channels={config.decoder_input_channels}: the encoder's output is "
                "not a mean and a scale of the decoder's input."
            )
        for network in (model.encoder, model.decoder):
            modern_weight_norm(network)
        super().__init__(
            model, latent_dim=config.decoder_input_channels, num_channels=config.audio_channels
        )

    @classmethod
    def model_class(cls) -> type[AutoencoderOobleck]:
        """``diffusers.AutoencoderOobleck``."""
        return import_extra("diffusers", "An Oobleck autoencoder", "diffusers").AutoencoderOobleck
