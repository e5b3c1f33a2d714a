"""``diffusers.AutoencoderOobleck`` (Stable Audio) as an autoencoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tokenizer.autoencoders.pretrained import check_fields, load_complete
from tokenizer.autoencoders.strided import StridedAutoencoder, modern_weight_norm
from tokenizer.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]

_FIELDS = (
    "encoder_hidden_size",
    "downsampling_ratios",
    "channel_multiples",
    "decoder_channels",
    "decoder_input_channels",
    "audio_channels",
    "sampling_rate",
)


def _diffusers_class() -> type[AutoencoderOobleck]:
    try:
        from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise MissingPackageError(
            'Oobleck autoencoders need diffusers: pip install "latent-tokenizer[diffusers]"'
            f" ({error})."
        ) from error
    return AutoencoderOobleck


class OobleckAutoencoder(StridedAutoencoder):
    """Oobleck, stereo by default. Its latents are the mean of its posterior, never a sample.

    Args:
        model: Its encoder and decoder are used, not copied; their weight normalisation is
            replaced by torch's newer one of the same values.

    Raises:
        ValueError: If the encoder does not return a mean and a scale for each input of the decoder.
    """

    kind: ClassVar[str] = "oobleck"

    def __init__(self, model: AutoencoderOobleck) -> None:
        config = {name: model.config[name] for name in _FIELDS}
        if config["encoder_hidden_size"] != 2 * config["decoder_input_channels"]:
            raise InputError(
                f"encoder_hidden_size={config['encoder_hidden_size']} is not twice "
                f"decoder_input_channels={config['decoder_input_channels']}: the encoder's "
                "output is no mean and scale of the decoder's input."
            )
        for network in (model.encoder, model.decoder):
            modern_weight_norm(network)
        super().__init__(
            model.encoder,
            model.decoder,
            sampling_rate=config["sampling_rate"],
            latent_dim=config["decoder_input_channels"],
            num_channels=config["audio_channels"],
        )
        self.config = config

    def to_config(self) -> dict[str, Any]:
        """The arguments of ``AutoencoderOobleck``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OobleckAutoencoder:
        """Builds an untrained model; raises ValueError for unknown or missing fields."""
        check_fields(cls.kind, config, _FIELDS)
        model_class = _diffusers_class()
        with warnings.catch_warnings():
            # diffusers still uses the weight normalisation that torch calls deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            return cls(model_class(**config))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> OobleckAutoencoder:
        """Loads a checkpoint that ``AutoencoderOobleck.save_pretrained`` wrote, in float32.

        Args:
            name: A folder or a hub id.
            options: For ``AutoencoderOobleck.from_pretrained``; ``subfolder="vae"`` for pipelines
                such as "stabilityai/stable-audio-open-1.0".
        """
        model_class = _diffusers_class()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return cls(load_complete(model_class, name, **options))
