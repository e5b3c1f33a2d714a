"""Sizes of the bundled family."""

from __future__ import annotations

from dataclasses import dataclass, fields

_MAY_BE_ZERO = ("lookahead", "envelope_dim", "companding")


@dataclass(frozen=True)
class LappedConfig:
    """Sizes of a `LappedAutoencoder`.

    Attributes:
        sampling_rate: Hz.
        hop_length: Samples per latent frame, and MDCT coefficients.
        latent_dim: D.
        encoder_width: Channels of the encoder's network.
        encoder_depth: Its blocks.
        decoder_width: Channels of the decoder's network.
        decoder_depth: Its blocks.
        expansion: Hidden channels of each block's MLP over its width.
        kernel_size: Frames each block sees; odd.
        linear_path: Whether to keep the linear path; without it the networks work alone (an
            ablation).
        lookahead: Frames that each of the two networks sees ahead, for live use; None: as many as
            it sees behind. Audio comes out ``2 * lookahead + 2`` frames after it went in: 20 ms at
            0 and 40 ms at 1, for frames of 10 ms.
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
    linear_path: bool = True
    lookahead: int | None = None
    envelope_dim: int = 0
    companding: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if value is not None and not isinstance(value, bool) and value < least:
                raise ValueError(
                    f"LappedConfig.{field.name} must be at least {least}, got {value}."
                )
        if self.envelope_dim and not (self.linear_path and self.envelope_dim < self.latent_dim):
            raise ValueError(
                f"LappedConfig.envelope_dim is {self.envelope_dim}: it must be less than "
                f"latent_dim, {self.latent_dim}, and needs the linear path."
            )
        if not self.companding <= 1 or (self.companding and not self.envelope_dim):  # NaN too
            raise ValueError(
                f"LappedConfig.companding is {self.companding}: it must be 0 to 1, and needs "
                "envelope latents (envelope_dim)."
            )
