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

The last term is there where the configuration asks for noise. The latents move too slowly to carry
the waveform of noise; without that term the decoder repeats one waveform every frame, which buzzes.
The noise is a function of frame and bin (`tokenizer.networks.noise`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
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
from tokenizer.autoencoders.lapped.steps import DecoderStepper, EncoderStepper, NetworkStepper
from tokenizer.errors import InputError
from tokenizer.networks.deviation import deviation
from tokenizer.networks.layers import Backbone, copy_common
from tokenizer.networks.noise import bin_noise, frame_states
from tokenizer.networks.spectral import imdct_folded, lapped_blocks, mdct_blocks, overlap_add
from tokenizer.networks.stepping import Agreements

# Gates are bounded: exp(7) restores any bin that the linear path lost, exp(-14) is below 24-bit
# silence.
MIN_GATE, _MAX_GATE = -14.0, 7.0
# Levels are linear in the latents, and may be far too large where these are further out than any
# seen in training, or badly quantized. Nothing is lost below exp(3), twenty times the root mean
# square: louder bins come from the linear path.
_MAX_MAGNITUDE = 3.0
# Noise begins below the level of what the linear path loses, and is no louder than a multiple.
FIRST_NOISE, _MAX_NOISE = -0.5, 2.0


Coefficients: TypeAlias = Float[Tensor, "*B T M"]


def _inverse(c: Float[Tensor, "B T M"]) -> Float[Tensor, "B 1 N"]:
    return overlap_add(imdct_folded(c)).flatten(1)[:, None]


class LappedEncoder(Encoder):
    """Audio ``[B, 1, N]`` to latents ``[B, D, ceil(N / hop) + 1]``."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.hop_length = config.hop_length
        self.linear = nn.Linear(config.hop_length, config.latent_dim, bias=False)
        # Of the log magnitudes: the other half of what the decoder learns without a network.
        self.envelope = (
            nn.Linear(config.hop_length, config.latent_dim) if config.envelope_dim else None
        )
        self.backbone = Backbone(
            2 * config.hop_length,
            config.encoder_width,
            config.encoder_depth,
            config.expansion,
            config.kernel_size,
            config.lookahead,
        )
        self.head = nn.Linear(config.encoder_width, config.latent_dim)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        # One more frame than the network sees: the first frame of a tile lacks the samples before
        # it.
        self.context = max(self.backbone.behind, self.backbone.ahead) + 1
        # A frame's own window reaches to the end of the block of samples that begins with it.
        self.lookahead = self.backbone.ahead
        self._agreements: Agreements = {}
        self.register_buffer("latent_scale", torch.ones(()))
        self.latent_scale: Tensor

    @staticmethod
    def features(c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T features"]:
        """What the network sees of the MDCT: compressed coefficients and log magnitudes."""
        # asinh(30 c): torch's own takes eight times as long as these few passes.
        x = c * 30
        compressed = x.sign() * torch.log(x.abs() + (x.square() + 1).sqrt())
        return torch.cat([compressed / 3, log_magnitudes(c)], dim=-1)

    def linear_path(self, c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T D"]:
        """The linear path's part of the latents."""
        # It carries the waveform: bfloat16 would cost it its precision.
        with torch.autocast(c.device.type, enabled=False):
            if self.envelope is None:
                return self.linear(c)
            return self.linear(c) + self.envelope(log_magnitudes(c))

    def enter(
        self, blocks: Float[Tensor, "*B blocks M"]
    ) -> tuple[Float[Tensor, "*B T C"], Float[Tensor, "*B T D"]]:
        """Blocks of samples to the first block's input and the linear path, for each two blocks."""
        c = mdct_blocks(blocks)
        return self.backbone.enter(self.features(c)), self.linear_path(c)

    def leave(
        self, h: Float[Tensor, "*B T C"], linear: Float[Tensor, "*B T D"]
    ) -> Float[Tensor, "*B T D"]:
        """The last block's output and the linear path to latents, before their scale."""
        return self.head(self.backbone.norm_out(h)).float() + linear

    def forward(self, audio: Float[Tensor, "B 1 N"]) -> Float[Tensor, "B D T"]:
        """Encodes; divides by the batch's own deviation in training mode, else the running one."""
        h, linear = self.enter(lapped_blocks(audio[:, 0], self.hop_length))
        z = self.leave(self.backbone.blocks(h), linear)
        if self.training:
            # Differentiable, so that the encoder cannot outgrow the noise that is added to its
            # latents in training.
            scale = deviation(z).clamp(min=1e-5)
            with torch.no_grad():
                # One bad batch must not spoil it for good: the trainer skips that step.
                self.latent_scale.lerp_(
                    torch.where(scale.isfinite(), scale, self.latent_scale), 0.01
                )
        else:
            scale = self.latent_scale
        return (z / scale).transpose(1, 2)

    def stepper(self) -> EncoderStepper | None:
        """See `Encoder.stepper`."""
        # Features of a subclass may see neighbouring frames: it has to implement this itself.
        if type(self).features is not LappedEncoder.features:
            return None
        dim = self.head.out_features
        network = NetworkStepper(
            self.backbone,
            self.enter,
            lambda h, linear: self.leave(h, linear) / self.latent_scale,
            widths=(self.hop_length, dim, dim),
            behind=1,
            agreements=self._agreements,
        )
        return EncoderStepper(network, self.hop_length, self.head.weight.device)


class LappedDecoder(Decoder):
    """Latents ``[B, D, T]`` to audio ``[B, 1, (T - 1) * hop]``."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.latent_dim, config.hop_length, bias=False)
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
        # The noisier the latents, the less each of them is to be trusted.
        self.noise_embedding = nn.Sequential(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, config.decoder_width)
        )
        self.adds_noise = config.noise
        # Where there is an envelope path, it sets the magnitude.
        start = [0.0, 0.0 if config.envelope_dim else -5.0, 0.0]
        start += [FIRST_NOISE] if config.noise else []
        self.head = nn.Linear(config.decoder_width, len(start) * config.hop_length)
        nn.init.normal_(self.head.weight, std=1e-2)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor(start).repeat_interleave(config.hop_length))
        # One more frame than the network sees: a block of samples overlaps with the next frame.
        self.context = max(self.backbone.behind, self.backbone.ahead) + 1
        self.lookahead = self.backbone.ahead + 1
        self._agreements: Agreements = {}

    def rows(
        self, latents: Float[Tensor, "B D T"], first_frame: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T R"]:
        """What the decoder works on: latents, and behind them what the noise of a frame needs.

        `DecoderStepper` makes the same of the frames that it is given.
        """
        z = latents.transpose(1, 2)
        if not self.adds_noise:
            return z
        frames = torch.arange(z.shape[1], device=z.device).expand(len(z), -1)
        if first_frame is not None:
            frames = frames + first_frame[:, None]
        return torch.cat([z, frame_states(frames).to(z.dtype)], dim=-1)

    def enter(
        self, rows: Float[Tensor, "*B T R"], shift: Float[Tensor, "... C"]
    ) -> tuple[Float[Tensor, "*B T C"], Float[Tensor, "*B T R"]]:
        """The first block's input, and the rows themselves for the linear path and the noise."""
        return self.backbone.enter(rows[..., : self.linear.in_features], shift), rows

    def coefficients(
        self, h: Float[Tensor, "*B T C"], rows: Float[Tensor, "*B T R"]
    ) -> tuple[Coefficients, Coefficients, Coefficients | None]:
        """The last block's output and the rows to the three terms of the MDCT coefficients."""
        hop, z = self.linear.out_features, rows[..., : self.linear.in_features].float()
        gate, magnitude, shape, *noise = self.head(self.backbone.norm_out(h)).float().split(hop, -1)
        with torch.autocast(z.device.type, enabled=False):
            if self.envelope is not None:
                magnitude = magnitude + self.envelope(z)
            magnitude = magnitude.clamp(MIN_GATE, _MAX_MAGNITUDE).exp()
            linear = self.linear(z) * gate.clamp(MIN_GATE, _MAX_GATE).exp()
            learned = magnitude * shape.tanh()
            if not noise:
                return linear, learned, None
            level = magnitude * noise[0].clamp(MIN_GATE, _MAX_NOISE).exp()
            return linear, learned, level * bin_noise(rows[..., -1:], hop)

    def leave(
        self, h: Float[Tensor, "*B T C"], rows: Float[Tensor, "*B T R"]
    ) -> Float[Tensor, "*B T M"]:
        """The last block's output and the rows to lapped frames (see `imdct_folded`)."""
        linear, learned, noise = self.coefficients(h, rows)
        c = linear + learned
        return imdct_folded(c if noise is None else c + noise)

    def shift(self, noise_level: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """Tells the network how noisy the latents are."""
        described = torch.stack([noise_level, torch.log(noise_level + 0.01)], dim=-1)
        return self.noise_embedding(described)

    def forward(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None = None,
        first_frame: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B 1 N"]:
        """Decodes latents, exact (``noise_level`` None or 0) or quantized.

        ``first_frame`` is where in a longer signal the latents begin, which decides their noise.
        """
        folded = self.leave(*self._last(latents, noise_level, first_frame))
        return overlap_add(folded).flatten(1)[:, None]

    def parts(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None,
        first_frame: Int[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B 1 N"], Float[Tensor, "B 1 N"]]:
        """See `Decoder.parts`.

        Losses of the audio do not train the learned waveform, only those of its expectation do:
        spectral losses would have it repeat one waveform every frame in place of noise.
        """
        linear, learned, noise = self.coefficients(*self._last(latents, noise_level, first_frame))
        expected = _inverse(linear + learned)
        if noise is None:
            return expected, expected
        return _inverse(linear + learned.detach() + noise), expected

    def _last(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None,
        first_frame: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B T R"]]:
        """What the last block returns, and the rows."""
        rows = self.rows(latents, first_frame)
        level = rows.new_zeros(len(rows)) if noise_level is None else noise_level.to(rows)
        h, rows = self.enter(rows, self.shift(level)[:, None])
        return self.backbone.blocks(h), rows

    def stepper(self, noise_level: float) -> DecoderStepper:
        """See `Decoder.stepper`."""
        device = self.head.weight.device
        hop, dim = self.linear.weight.shape
        shift = self.shift(torch.full((1,), noise_level, device=device))[0].detach()
        features = dim + self.adds_noise
        network = NetworkStepper(
            self.backbone,
            lambda rows: self.enter(rows, shift),
            self.leave,
            widths=(features, features, hop),
            same=True,
            agreements=self._agreements,
        )
        return DecoderStepper(network, hop, device, self._agreements, adds_noise=self.adds_noise)


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
        self.num_channels = 1
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
        """See `LappedConfig.to_dict`."""
        return self.config.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LappedAutoencoder:
        """Builds an untrained model; raises as `LappedConfig.from_dict`."""
        return cls(LappedConfig.from_dict(config))

    @torch.no_grad()
    def initialize(
        self, covariance: Float[Tensor, "M M"], levels: LevelStatistics | None = None
    ) -> None:
        """Makes the linear path a principal component analysis; see `waveform_paths`.

        Args:
            covariance: Second moments of the MDCT coefficients of audio of root mean square 1.
            levels: Of the same audio; needed for envelope latents.

        Raises:
            ValueError: If there are envelope latents and no levels.
        """
        # Latents in order: waveform, levels, detail.
        first, last = self.coded_dim - self.config.envelope_dim, self.coded_dim
        start = waveform_paths(covariance, first + self.config.detail_dim)
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
        lost = waveform_paths(covariance, first).lost
        analysis = envelope_analysis(levels, lost, self.config.envelope_dim)
        for parameter in (*levels_in.parameters(), levels_out.weight):
            parameter.zero_()
        levels_in.weight[first:last] = analysis.to(levels_in.weight)
        levels_in.bias[first:last] = (-analysis @ levels.mean.to(analysis)).to(levels_in.bias)
        expected = expected_levels(levels, levels_in.weight[first:last])
        levels_out.weight[:, first:last] = expected.to(levels_out.weight)
        levels_out.bias.copy_(mean_levels(levels) + lost.log() / 2)
