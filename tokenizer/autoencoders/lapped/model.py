"""The bundled family: a linear lapped transform with networks around it.

    c  = mdct(x)
    l  = V_e log|c|
    z  = W_e (c / exp(U_e l)) + l + f(features(c))         over one running standard deviation
    c' = (W_d z) * exp(U_d z + g1(z)) + exp(V_d z + g2(z)) * tanh(g3(z))
    x' = imdct(c')

The linear path W starts as a principal component analysis of ``c`` and is a good codec by itself
before any training; the networks f and g start near zero and add what it lacks. The gates exp(g1),
exp(g2) can shut a bin off, so that what is silent stays silent. Where the configuration asks for
envelope latents, the path V starts as a principal component analysis of the log spectrum: the
level of what W leaves out, so that noise comes out as loud as it went in. U evens these levels out
on the way through W, as far as the configuration's ``companding`` says: noise in the latents then
comes out under the signal's own spectrum rather than one for all.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.autoencoders.lapped.config import LappedConfig
from tokenizer.autoencoders.lapped.paths import (
    LevelStatistics,
    envelope_analysis,
    expected_levels,
    log_magnitudes,
    mean_levels,
    waveform_paths,
)
from tokenizer.autoencoders.lapped.resizing import copy_common
from tokenizer.autoencoders.lapped.steps import DecoderStepper, EncoderStepper
from tokenizer.errors import InputError
from tokenizer.networks.deviation import deviation
from tokenizer.networks.layers import Backbone
from tokenizer.networks.spectral import imdct, mdct
from tokenizer.networks.stepping import Agreements

# Gates are bounded: exp(7) restores any bin that the linear path lost, exp(-14) is below 24-bit
# silence.
_MIN_GATE, _MAX_GATE = -14.0, 7.0
# Levels are linear in the latents and may be far too large where these are farther out than any
# seen in training, or badly quantized. Beside a linear path nothing is lost below exp(3), twenty
# times the root mean square: bins louder than that are the linear path's.
_MAX_MAGNITUDE = 3.0


def _companding(config: LappedConfig) -> nn.Linear | None:
    """Latents to the logarithms of what bins are divided by, and multiplied with."""
    return (
        nn.Linear(config.latent_dim, config.hop_length, bias=False) if config.companding else None
    )


class LappedEncoder(Encoder):
    """Audio ``[B, 1, N]`` to latents ``[B, D, ceil(N / hop) + 1]``."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.hop_length = config.hop_length
        self.linear = (
            nn.Linear(config.hop_length, config.latent_dim, bias=False)
            if config.linear_path
            else None
        )
        # Of the log magnitudes: the other half of what the decoder is told without a network.
        self.envelope = (
            nn.Linear(config.hop_length, config.latent_dim) if config.envelope_dim else None
        )
        self.compressor = _companding(config)
        self.backbone = Backbone(
            2 * config.hop_length,
            config.encoder_width,
            config.encoder_depth,
            config.expansion,
            config.kernel_size,
            config.lookahead,
        )
        self.head = nn.Linear(config.encoder_width, config.latent_dim)
        nn.init.normal_(self.head.weight, std=1e-3 if config.linear_path else 0.05)
        nn.init.zeros_(self.head.bias)
        # One more frame than the network sees: the first frame of a tile lacks the samples before
        # it.
        self.context = max(self.backbone.behind, self.backbone.ahead) + 1
        # A frame's own window reaches to the end of the block of samples that begins with it.
        self.lookahead = self.backbone.ahead
        self._agreed: Agreements = {}
        self.register_buffer("latent_scale", torch.ones(()))
        self.latent_scale: Tensor

    @staticmethod
    def features(c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T features"]:
        """What the network sees of the MDCT: companded coefficients and log magnitudes."""
        # asinh(30 c): torch's own takes eight times as long as these few passes.
        x = c * 30
        companded = x.sign() * torch.log(x.abs() + (x.square() + 1).sqrt())
        return torch.cat([companded / 3, log_magnitudes(c)], dim=-1)

    def linear_path(self, c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T D"]:
        """The linear path's part of the latents; zero without it."""
        if self.linear is None:
            return c.new_zeros(*c.shape[:-1], self.head.out_features)
        # It carries the waveform: bfloat16 would cost it its precision.
        with torch.autocast(c.device.type, enabled=False):
            if self.envelope is None:
                return self.linear(c)
            levels = self.envelope(log_magnitudes(c))
            return self.linear(self.companded(c, levels)) + levels

    def companded(
        self, c: Float[Tensor, "*B T M"], levels: Float[Tensor, "*B T D"]
    ) -> Float[Tensor, "*B T M"]:
        """Coefficients over a power of the magnitudes that their envelope latents stand for."""
        if self.compressor is None:
            return c
        return c * self.compressor(-levels).clamp(-_MAX_GATE, _MAX_GATE).exp()

    def forward(self, audio: Float[Tensor, "B 1 N"]) -> Float[Tensor, "B D T"]:
        """Encodes, over the batch's own deviation in training mode, else the running one."""
        c = mdct(audio[:, 0], self.hop_length)
        z = self.head(self.backbone(self.features(c))).float() + self.linear_path(c)
        if self.training:
            # Differentiable, so that the encoder cannot outgrow the noise its latents are trained
            # under.
            scale = deviation(z).clamp(min=1e-5)
            with torch.no_grad():
                # A bad batch must not spoil it for good: the loop skips its step.
                self.latent_scale.lerp_(
                    torch.where(scale.isfinite(), scale, self.latent_scale), 0.01
                )
        else:
            scale = self.latent_scale
        return (z / scale).transpose(1, 2)

    def stepper(self) -> EncoderStepper | None:
        """See `Encoder.stepper`."""
        # Features of a subclass may see neighbouring frames: it has to say so itself.
        if type(self).features is not LappedEncoder.features:
            return None
        return EncoderStepper(self, self._agreed)


class LappedDecoder(Decoder):
    """Latents ``[B, D, T]`` to audio ``[B, 1, (T - 1) * hop]``."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.linear = (
            nn.Linear(config.latent_dim, config.hop_length, bias=False)
            if config.linear_path
            else None
        )
        self.backbone = Backbone(
            config.latent_dim,
            config.decoder_width,
            config.decoder_depth,
            config.expansion,
            config.kernel_size,
            config.lookahead,
        )
        self.envelope = (
            nn.Linear(config.latent_dim, config.hop_length) if config.envelope_dim else None
        )
        self.expander = _companding(config)
        # How noisy the latents are decides how far to trust each of them.
        self.noise_embedding = nn.Sequential(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, config.decoder_width)
        )
        self.head = nn.Linear(config.decoder_width, 3 * config.hop_length)
        nn.init.normal_(self.head.weight, std=1e-2)
        with torch.no_grad():
            gate = 0.0 if config.linear_path else _MIN_GATE
            # The envelope path says how large it is, where there is one.
            magnitude = 0.0 if config.envelope_dim else -5.0 if config.linear_path else -2.0
            bias = torch.tensor([gate, magnitude, 0.0]).repeat_interleave(config.hop_length)
            self.head.bias.copy_(bias)
        # One more frame than the network sees: a block of samples overlaps with the next frame.
        self.context = max(self.backbone.behind, self.backbone.ahead) + 1
        self.lookahead = self.backbone.ahead + 1
        self._agreed: Agreements = {}

    def forward(
        self, latents: Float[Tensor, "B D T"], noise_level: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B 1 N"]:
        """Decodes latents, exact (``noise_level`` None or 0) or quantized."""
        z = latents.transpose(1, 2)
        level = z.new_zeros(len(z)) if noise_level is None else noise_level.to(z)
        h = self.backbone(z, shift=self.shift(level)[:, None])
        return imdct(self.coefficients(h, z))[:, None]

    def shift(self, noise_level: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """What tells the network how noisy the latents are."""
        described = torch.stack([noise_level, torch.log(noise_level + 0.01)], dim=-1)
        return self.noise_embedding(described)

    def coefficients(
        self, h: Float[Tensor, "*B T C"], z: Float[Tensor, "*B T D"]
    ) -> Float[Tensor, "*B T M"]:
        """MDCT coefficients of what the network says of latents, and of these themselves."""
        gate, magnitude, shape = self.head(h).float().chunk(3, dim=-1)
        if self.envelope is not None:
            with torch.autocast(z.device.type, enabled=False):
                magnitude = magnitude + self.envelope(z.float())
        loudest = _MAX_GATE if self.linear is None else _MAX_MAGNITUDE
        c = magnitude.clamp(_MIN_GATE, loudest).exp() * shape.tanh()
        if self.linear is not None:
            with torch.autocast(z.device.type, enabled=False):
                if self.expander is not None:
                    gate = gate + self.expander(z.float())
                c = c + self.linear(z.float()) * gate.clamp(_MIN_GATE, _MAX_GATE).exp()
        return c

    def stepper(self, noise_level: float) -> DecoderStepper:
        """See `Decoder.stepper`."""
        return DecoderStepper(self, noise_level, self._agreed)


class LappedAutoencoder(Autoencoder):
    """The bundled autoencoder: see the module's docstring and `LappedConfig`."""

    kind: ClassVar[str] = "lapped"

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LappedEncoder(config)
        self.decoder = LappedDecoder(config)
        self.sampling_rate = config.sampling_rate
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        self.num_channels = 1
        self.normalize = True

    @property
    def coded_dim(self) -> int:
        """All latents but the detail."""
        return self.latent_dim - self.config.detail_dim

    def without_detail(self) -> LappedAutoencoder:
        """See `Autoencoder.without_detail`."""
        if not self.config.detail_dim:
            return self
        sizes = replace(self.config, latent_dim=self.coded_dim, detail_dim=0)
        # On "meta" nothing is drawn at random and nothing computed.
        with torch.device("meta"):
            coded = LappedAutoencoder(sizes)
        coded.to_empty(device=next(self.parameters()).device)
        copy_common(self, coded)
        return coded

    def num_frames(self, num_samples: int) -> int:
        """``ceil(num_samples / hop_length) + 1``: each block of samples needs two lapped frames."""
        return -(-num_samples // self.hop_length) + 1

    def num_samples(self, num_frames: int) -> int:
        """``(num_frames - 1) * hop_length``."""
        return (num_frames - 1) * self.hop_length

    def to_config(self) -> dict[str, Any]:
        """The fields of `LappedConfig`; those that came later only where they say something."""
        config = asdict(self.config)
        if self.config.lookahead is None:
            del config["lookahead"]
        if not self.config.envelope_dim:
            del config["envelope_dim"]
        if not self.config.companding:
            del config["companding"]
        if not self.config.detail_dim:
            del config["detail_dim"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LappedAutoencoder:
        """Builds an untrained model; raises ValueError for unknown or missing fields."""
        try:
            return cls(LappedConfig(**config))
        except TypeError as error:
            raise InputError(f"Not a configuration of the lapped autoencoder: {error}.") from None

    @torch.no_grad()
    def initialize_companding(self, levels: LevelStatistics) -> None:
        """Makes the companding that of these levels, for a model whose configuration asks for it.

        `initialize` comes after it, and wants the covariance of coefficients so `companded`.
        """
        encoder, decoder = self.encoder, self.decoder
        assert isinstance(encoder, LappedEncoder)
        assert isinstance(decoder, LappedDecoder)
        if encoder.compressor is None or decoder.expander is None:
            return
        analysis = envelope_analysis(levels, torch.ones_like(levels.mean), self.config.envelope_dim)
        self._begin_envelope(levels, analysis)
        exponents = self.config.companding * expected_levels(levels, analysis)
        for layer in (encoder.compressor, decoder.expander):
            layer.weight.zero_()
            layer.weight[:, self._envelope] = exponents.to(layer.weight)

    @torch.no_grad()
    def initialize(
        self, covariance: Float[Tensor, "M M"], levels: LevelStatistics | None = None
    ) -> None:
        """Makes the linear path a principal component analysis.

        The components' standard deviations are shared half and half between encoder and decoder,
        so that the latents that matter more have more variance, and all latents have standard
        deviation 1 together.

        Args:
            covariance: Second moments of the MDCT coefficients of audio of root mean square 1;
                with companding, of companded ones.
            levels: Of the same audio; needed for envelope latents.

        Raises:
            ValueError: If there are envelope latents and no levels.
        """
        assert isinstance(self.encoder, LappedEncoder)
        assert isinstance(self.decoder, LappedDecoder)
        encode, decode = self.encoder.linear, self.decoder.linear
        if encode is None or decode is None:
            return
        first = self._envelope.start
        start = waveform_paths(covariance, first + self.config.detail_dim)
        # Levels stand for what codes lose, and codes have no detail.
        lost = waveform_paths(covariance, first).lost
        waveform = [*range(first), *range(self.coded_dim, self.latent_dim)]
        encode.weight.zero_()
        decode.weight.zero_()
        encode.weight[waveform] = start.analysis.to(encode.weight)
        decode.weight[:, waveform] = start.synthesis.to(decode.weight)
        self.encoder.latent_scale.fill_(1.0)
        levels_in, levels_out = self.encoder.envelope, self.decoder.envelope
        if levels_in is None or levels_out is None:
            return
        if levels is None:
            raise InputError("Envelope latents begin with the levels' statistics: give levels.")
        if not self.config.companding:
            analysis = envelope_analysis(levels, lost, self.config.envelope_dim)
            self._begin_envelope(levels, analysis)
        levels_out.weight.zero_()
        expected = expected_levels(levels, levels_in.weight[self._envelope])
        levels_out.weight[:, self._envelope] = expected.to(levels_out.weight)
        levels_out.bias.copy_(mean_levels(levels) + lost.log() / 2)

    @property
    def _envelope(self) -> slice:
        """Which latents begin as levels."""
        return slice(self.coded_dim - self.config.envelope_dim, self.coded_dim)

    def _begin_envelope(self, levels: LevelStatistics, analysis: Float[Tensor, "E M"]) -> None:
        assert isinstance(self.encoder, LappedEncoder)
        layer, which = self.encoder.envelope, self._envelope
        assert layer is not None
        assert layer.bias is not None
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[which] = analysis.to(layer.weight)
        layer.bias[which] = (-analysis @ levels.mean.to(analysis)).to(layer.bias)
