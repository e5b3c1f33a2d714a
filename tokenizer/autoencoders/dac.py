"""``transformers.DacModel`` as an autoencoder: its encoder and decoder, without its quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import DacConfig, DacModel

from tokenizer.autoencoders.pretrained import check_fields, load_complete
from tokenizer.autoencoders.strided import StridedAutoencoder

_FIELDS = (
    "sampling_rate",
    "hidden_size",
    "encoder_hidden_size",
    "decoder_hidden_size",
    "downsampling_ratios",
    "upsampling_ratios",
)


class DacAutoencoder(StridedAutoencoder):
    """DAC. Its latents are what its encoder returns and its own quantizer would be given.

    Args:
        model: Its encoder and decoder are used as they are, not copied.
    """

    kind: ClassVar[str] = "dac"

    def __init__(self, model: DacModel) -> None:
        super().__init__(
            model.encoder,
            model.decoder,
            sampling_rate=model.config.sampling_rate,
            latent_dim=model.config.hidden_size,
            num_channels=1,
        )
        self.config = model.config

    def to_config(self) -> dict[str, Any]:
        """The fields of ``DacConfig`` that shape encoder and decoder."""
        values = {name: getattr(self.config, name) for name in _FIELDS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DacAutoencoder:
        """Builds an untrained model; raises ValueError for unknown or missing fields."""
        check_fields(cls.kind, config, _FIELDS)
        return cls(DacModel(DacConfig(**config, n_codebooks=1)))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> DacAutoencoder:
        """Loads a checkpoint that ``DacModel.save_pretrained`` wrote, in float32.

        Args:
            name: A folder or a hub id ("descript/dac_44khz").
            options: For ``DacModel.from_pretrained``.
        """
        return cls(load_complete(DacModel, name, **options))
