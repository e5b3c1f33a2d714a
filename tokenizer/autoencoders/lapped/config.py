"""Sizes of the bundled family."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenizer.errors import InputError

_MAY_BE_ZERO = ("lookahead", "envelope_dim", "companding", "detail_dim")


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
        envelope_dim: So many of the coded latents begin as levels; see the module of the model.
        companding: Power of the expected magnitude by which the linear path divides, 0 to 1.
        detail_dim: The last so many latents are detail, which codes leave out. They begin as the
            principal components of the waveform that follow the coded ones.
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
    detail_dim: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if value is not None and not isinstance(value, bool) and value < least:
                raise InputError(
                    f"LappedConfig.{field.name} must be at least {least}, got {value}."
                )
        of_their_own = self.envelope_dim + self.detail_dim
        if of_their_own and not (self.linear_path and of_their_own < self.latent_dim):
            raise InputError(
                f"LappedConfig.envelope_dim is {self.envelope_dim} and detail_dim "
                f"{self.detail_dim}: together they must be less than latent_dim, "
                f"{self.latent_dim}, and they need the linear path."
            )
        if not self.companding <= 1 or (self.companding and not self.envelope_dim):  # NaN too
            raise InputError(
                f"LappedConfig.companding is {self.companding}: it must be 0 to 1, and needs "
                "envelope latents (envelope_dim)."
            )
