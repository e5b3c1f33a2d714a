"""Sizes of the bundled family."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from tokenizer.errors import InputError

_MAY_BE_ZERO = ("lookahead", "envelope_dim", "detail_dim", "noise")
# Options that were removed, with the only value that can still be loaded. Every checkpoint has the
# first of them, and fingerprints are computed from it.
_REMOVED = {"linear_path": True, "companding": 0.0}


@dataclass(frozen=True)
class LappedConfig:
    """Sizes of a `LappedAutoencoder`.

    Attributes:
        sampling_rate: Sampling rate in Hz.
        hop_length: Samples per latent frame, and MDCT coefficients.
        latent_dim: Numbers per latent frame, D.
        encoder_width: Channels of the encoder's network.
        encoder_depth: Blocks of the encoder's network.
        decoder_width: Channels of the decoder's network.
        decoder_depth: Blocks of the decoder's network.
        expansion: Hidden channels of each block's MLP over its width.
        kernel_size: Frames each block sees; odd.
        lookahead: Frames that each of the two networks sees ahead, for live use; by default as
            many as it sees behind. Audio comes out ``2 * lookahead + 2`` frames after it went in:
            20 ms at 0 and 40 ms at 1, for frames of 10 ms.
        envelope_dim: How many of the coded latents start as levels; see `lapped.model`.
        detail_dim: How many latents, the last ones, are detail, which codes leave out. They start
            as the principal components of the waveform that follow the coded ones.
        noise: Whether the decoder adds noise where it does not know the waveform.
        channels: 1, or 2 for stereo, whose mid and side share the latents. A mono model codes each
            channel by itself.

    Raises:
        ValueError: If a number is too small, or envelope and detail leave no latents for the
            waveform.
    """

    sampling_rate: int
    hop_length: int
    latent_dim: int
    encoder_width: int
    encoder_depth: int
    decoder_width: int
    decoder_depth: int
    expansion: int = 3
    kernel_size: int = 7
    lookahead: int | None = None
    envelope_dim: int = 0
    detail_dim: int = 0
    noise: bool = False
    channels: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if value is not None and (value < least or isinstance(value, float)):
                raise InputError(
                    f"LappedConfig.{field.name} must be an integer of at least {least}, "
                    f"got {value}."
                )
        if self.channels > 2:
            raise InputError(f"LappedConfig.channels must be 1 or 2, got {self.channels}.")
        if self.envelope_dim + self.detail_dim >= self.latent_dim:
            raise InputError(
                f"LappedConfig.envelope_dim is {self.envelope_dim} and detail_dim "
                f"{self.detail_dim}: together they must be less than latent_dim, "
                f"{self.latent_dim}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as checkpoints keep them; later ones are left out where they are unused."""
        config = asdict(self) | {"linear_path": True}
        unused = {
            "lookahead": None,
            "envelope_dim": 0,
            "detail_dim": 0,
            "noise": False,
            "channels": 1,
        }
        return {k: v for k, v in config.items() if k not in unused or v != unused[k]}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> LappedConfig:
        """The counterpart of `to_dict`.

        Raises:
            ValueError: If a field is unknown, missing, of a removed option or out of range.
        """
        for name, value in _REMOVED.items():
            if config.get(name, value) != value:
                raise InputError(
                    f"This autoencoder has {name}={config[name]}. The option was removed in 0.1: "
                    f"train a new model without it."
                )
        try:
            return cls(**{k: v for k, v in config.items() if k not in _REMOVED})
        except TypeError as error:
            raise InputError(f"Not a configuration of the lapped autoencoder: {error}.") from None
