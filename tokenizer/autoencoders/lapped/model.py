"""The bundled family: a linear lapped transform with networks around it.

    c  = mdct(x)
    l  = V_e log|c|
    z  = W_e c + l + f(features(c))                     over one running standard deviation
    a  = exp(V_d z + g2(z))
    c' = (W_d z) * exp(g1(z)) + a * tanh(g3(z)) + a * exp(g4(z)) * noise
    x' = imdct(c')

The linear path W starts as a principal component analysis of ``c`` and is a good codec by itself
before any training. The networks f and g start near zero and add what it lacks. The gates exp(g1)
and exp(g2) can shut a bin off, so that silence stays silent. Where the configuration asks for
envelope latents, the path V starts as a principal component analysis of the log spectrum: it
carries the level of what W leaves out, so that noise comes out as loud as it went in.

A stereo model codes mid and side together: ``c`` holds the coefficients of both, and so do ``a``
and the noise (`lapped.stereo`).

The last term is there where the configuration asks for noise. The latents move too slowly to carry
the waveform of noise; without that term the decoder repeats one waveform every frame, which buzzes.
The noise is a function of frame and bin (`tokenizer.networks.noise`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder
from tokenizer.autoencoders.lapped.config import LappedConfig
from tokenizer.autoencoders.lapped.decoder import LappedDecoder
from tokenizer.autoencoders.lapped.encoder import LappedEncoder
from tokenizer.autoencoders.lapped.paths import (
    LevelStatistics,
    envelope_analysis,
    expected_levels,
    mean_levels,
    waveform_paths,
)
from tokenizer.errors import InputError
from tokenizer.networks.filling import Undrawn
from tokenizer.networks.layers import copy_common


class LappedAutoencoder(Autoencoder):
    """The bundled autoencoder: see the module's docstring and `LappedConfig`."""

    kind: ClassVar[str] = "lapped"

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.config = config
        # Narrower than in the base class; nothing replaces them by another kind.
        self.encoder: LappedEncoder = LappedEncoder(config)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.decoder: LappedDecoder = LappedDecoder(config)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sampling_rate = config.sampling_rate
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        self.num_channels = config.channels
        self.normalize = True

    @property
    def coded_dim(self) -> int:
        """All latents but the detail."""
        return self.latent_dim - self.config.detail_dim

    def for_codes(self) -> LappedAutoencoder:
        """See `Autoencoder.for_codes`."""
        sizes = replace(self.config, latent_dim=self.coded_dim, detail_dim=0, noise=False)
        if sizes == self.config:
            return self
        with Undrawn():
            coded = LappedAutoencoder(sizes).to(next(self.parameters()).device)
        copy_common(self, coded)
        return coded

    def num_frames(self, num_samples: int) -> int:
        """``ceil(num_samples / hop_length) + 1``: each block of samples needs two lapped frames."""
        return -(-num_samples // self.hop_length) + 1

    def num_samples(self, num_frames: int) -> int:
        """``(num_frames - 1) * hop_length``."""
        return (num_frames - 1) * self.hop_length

    def to_config(self) -> dict[str, Any]:
        """See `LappedConfig.to_dict`."""
        return self.config.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LappedAutoencoder:
        """Builds an untrained model; raises as `LappedConfig.from_dict`."""
        return cls(LappedConfig.from_dict(config))

    @torch.no_grad()
    def initialize(
        self,
        covariance: Float[Tensor, "M M"],
        levels: LevelStatistics | None = None,
        emphasis: float = 0.0,
    ) -> None:
        """Makes the linear path a principal component analysis; see `waveform_paths`.

        Args:
            covariance: Second moments of the MDCT coefficients (`stereo.coefficients`) of audio of
                root mean square 1.
            levels: Of the same audio; needed for envelope latents.
            emphasis: Pre-emphasis that weights bins in the analysis.

        Raises:
            ValueError: If there are envelope latents and no levels.
        """
        # Latents in order: waveform, levels, detail.
        first, last = self.coded_dim - self.config.envelope_dim, self.coded_dim
        count, channels = first + self.config.detail_dim, self.num_channels
        start = waveform_paths(covariance, count, emphasis, channels)
        waveform = [*range(first), *range(last, self.latent_dim)]
        encode, decode = self.encoder.linear.weight, self.decoder.linear.weight
        encode.zero_()
        decode.zero_()
        encode[waveform] = start.analysis.to(encode)
        decode[:, waveform] = start.synthesis.to(decode)
        self.encoder.latent_scale.fill_(1.0)
        levels_in, levels_out = self.encoder.envelope, self.decoder.envelope
        if levels_in is None or levels_out is None:
            return
        if levels is None:
            raise InputError("Envelope latents start from the levels' statistics: pass levels.")
        # Levels stand for what codes lose, and codes have no detail.
        lost = waveform_paths(covariance, first, emphasis, channels).lost
        analysis = envelope_analysis(levels, lost, self.config.envelope_dim, channels)
        for parameter in (*levels_in.parameters(), levels_out.weight):
            parameter.zero_()
        levels_in.weight[first:last] = analysis.to(levels_in.weight)
        levels_in.bias[first:last] = (-analysis @ levels.mean.to(analysis)).to(levels_in.bias)
        expected = expected_levels(levels, levels_in.weight[first:last])
        levels_out.weight[:, first:last] = expected.to(levels_out.weight)
        levels_out.bias.copy_(mean_levels(levels) + lost.log() / 2)
