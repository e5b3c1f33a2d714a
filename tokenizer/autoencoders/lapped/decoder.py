"""The decoder of the bundled family: see `tokenizer.autoencoders.lapped.model`."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.autoencoders.base import Decoder
from tokenizer.autoencoders.lapped.config import LappedConfig
from tokenizer.autoencoders.lapped.steps import DecoderStepper, NetworkStepper
from tokenizer.autoencoders.lapped.stereo import each_channel, mid_and_side, to_channels
from tokenizer.networks.layers import Backbone
from tokenizer.networks.noise import bin_noise, frame_states
from tokenizer.networks.packing import PackedNetwork
from tokenizer.networks.spectral import imdct_folded, overlap_add
from tokenizer.networks.stepping import Agreements
from tokenizer.precision import full_float32

# Gates are bounded: exp(7) restores any bin that the linear path lost, exp(-14) is below 24-bit
# silence.
_MIN_GATE, _MAX_GATE = -14.0, 7.0
# Levels are linear in the latents, and may be far too large where these are further out than any
# seen in training, or badly quantized. Nothing is lost below exp(3), twenty times the root mean
# square: louder bins come from the linear path.
_MAX_MAGNITUDE = 3.0
# Noise begins below the level of what the linear path loses, and is no louder than a multiple.
_FIRST_NOISE, _MAX_NOISE = -0.5, 2.0
# Where no gradient opens it.
_SHUT_NOISE = _MIN_GATE - 6

# Of mono, or of mid and side: M is the number of coefficients of a frame.
Coefficients: TypeAlias = Float[Tensor, "*B T M"]


class LappedDecoder(Decoder):
    """Latents ``[B, D, T]`` to audio ``[B, C, (T - 1) * hop]``; C is 1, or 2 for stereo."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.hop_length, self.num_channels = config.hop_length, config.channels
        bins = config.channels * config.hop_length
        self.linear = nn.Linear(config.latent_dim, bins, bias=False)
        self.backbone = Backbone(
            config.latent_dim,
            config.decoder_width,
            config.decoder_depth,
            config.expansion,
            config.kernel_size,
            config.lookahead,
        )
        self.envelope = nn.Linear(config.latent_dim, bins) if config.envelope_dim else None
        # The noisier the latents, the less each of them is to be trusted.
        self.noise_embedding = nn.Sequential(
            nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, config.decoder_width)
        )
        self.adds_noise = config.noise
        # Where there is an envelope path, it sets the magnitude.
        start = [0.0, 0.0 if config.envelope_dim else -5.0, 0.0]
        start += [_FIRST_NOISE] if config.noise else []
        self.head = nn.Linear(config.decoder_width, len(start) * bins)
        nn.init.normal_(self.head.weight, std=1e-2)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor(start).repeat_interleave(bins))
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
        bins, z = self.linear.out_features, rows[..., : self.linear.in_features].float()
        gate, magnitude, shape, *noise = (
            self.head(self.backbone.norm_out(h)).float().split(bins, -1)
        )
        with full_float32():
            if self.envelope is not None:
                magnitude = magnitude + self.envelope(z)
            magnitude = magnitude.clamp(_MIN_GATE, _MAX_MAGNITUDE).exp()
            linear = self.linear(z) * gate.clamp(_MIN_GATE, _MAX_GATE).exp()
            learned = magnitude * shape.tanh()
            if not noise:
                return linear, learned, None
            level = magnitude * noise[0].clamp(_MIN_GATE, _MAX_NOISE).exp()
            return linear, learned, level * bin_noise(rows[..., -1:], bins)

    @torch.no_grad()
    def shut_noise(self) -> None:
        """Adds no noise any more; training does not change that."""
        self._set_head(3, 0, _SHUT_NOISE)

    @torch.no_grad()
    def open_noise(self, first_bin: int) -> None:
        """Adds noise from a bin of the spectrum on, if it is shut in all bins.

        There the decoder has to find anew what it had learned of the waveform: that was a
        substitute for noise.
        """
        if self.adds_noise and not bool((self.noise_bias > _MIN_GATE).any()):
            self._set_head(2, first_bin, 0.0)
            self._set_head(3, first_bin, _FIRST_NOISE)

    @property
    def noise_bias(self) -> Float[Tensor, " M"]:
        """The logarithm of the noise's level in each bin, where the network says nothing."""
        return self.head.bias.detach()[-self.linear.out_features :]

    def _set_head(self, part: int, first_bin: int, bias: float) -> None:
        """Sets a part of the head (gate, magnitude, waveform, noise) from a bin on."""
        sizes = (-1, self.num_channels, self.hop_length)
        self.head.weight.unflatten(0, sizes)[part, :, first_bin:] = 0
        self.head.bias.unflatten(0, sizes)[part, :, first_bin:] = bias

    def leave(
        self, h: Float[Tensor, "*B T C"], rows: Float[Tensor, "*B T R"]
    ) -> Float[Tensor, "*B T M"]:
        """The last block's output and the rows to lapped frames (see `imdct_folded`)."""
        linear, learned, noise = self.coefficients(h, rows)
        c = linear + learned
        return each_channel(imdct_folded, c if noise is None else c + noise, self.hop_length)

    def overlap(self, folded: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T2 M"]:
        """Lapped frames to blocks of samples of mono, or of mid and side."""
        return each_channel(overlap_add, folded, self.hop_length)

    def _audio(self, folded: Float[Tensor, "B T M"]) -> Float[Tensor, "B C N"]:
        return mid_and_side(to_channels(self.overlap(folded), self.num_channels))

    def _inverse(self, c: Float[Tensor, "B T M"]) -> Float[Tensor, "B C N"]:
        return self._audio(each_channel(imdct_folded, c, self.hop_length))

    def shift(self, noise_level: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """Tells the network how noisy the latents are."""
        described = torch.stack([noise_level, torch.log(noise_level + 0.01)], dim=-1)
        return self.noise_embedding(described)

    def forward(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None = None,
        first_frame: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents, exact (``noise_level`` None or 0) or quantized.

        ``first_frame`` is where in a longer signal the latents begin, which decides their noise.
        """
        return self._audio(self.leave(*self._last(latents, noise_level, first_frame)))

    def parts(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None,
        first_frame: Int[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B C N"], Float[Tensor, "B C N"]]:
        """See `Decoder.parts`.

        Where there is noise, losses of the audio do not train the learned waveform, only those of
        its expectation do: spectral losses would have it repeat one waveform every frame in place
        of noise.
        """
        linear, learned, noise = self.coefficients(*self._last(latents, noise_level, first_frame))
        expected = self._inverse(linear + learned)
        if noise is None:
            return expected, expected
        heard = torch.where(self.noise_bias > _MIN_GATE, learned.detach(), learned)
        return self._inverse(linear + heard + noise), expected

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
        bins, dim = self.linear.weight.shape
        shift = self.shift(torch.full((1,), noise_level, device=device))[0].detach()
        features = dim + self.adds_noise
        network = NetworkStepper(
            self.backbone,
            lambda rows: self.enter(rows, shift),
            self.leave,
            widths=(features, features, bins),
            same=True,
            agreements=self._agreements,
        )
        return DecoderStepper(
            network,
            self.overlap,
            (self.num_channels, bins),
            device,
            self._agreements,
            adds_noise=self.adds_noise,
        )

    def packed(self, noise_level: Float[Tensor, ""]) -> PackedNetwork:
        """See `Decoder.packed`."""
        backbone = self.backbone
        first = backbone.behind

        def run(rows: Tensor, inside: Tensor) -> Tensor:
            z = rows if self.adds_noise else rows[..., :-1]
            h, z = self.enter(z, self.shift(noise_level[None]))
            h = backbone.masked(h, inside)
            last = h.shape[1] - backbone.ahead
            samples = self.overlap(self.leave(h[:, first:last], z[:, first:last]))
            return mid_and_side(samples.unflatten(-1, (self.num_channels, -1))).flatten(-2)

        # A block of samples overlaps with the next frame.
        return PackedNetwork(run, (first, backbone.ahead + 1), backbone.gap)
