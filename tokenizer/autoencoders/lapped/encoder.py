"""The encoder of the bundled family: see `tokenizer.autoencoders.lapped.model`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders.base import Encoder
from tokenizer.autoencoders.lapped.config import LappedConfig
from tokenizer.autoencoders.lapped.paths import log_magnitudes
from tokenizer.autoencoders.lapped.steps import EncoderStepper, NetworkStepper
from tokenizer.autoencoders.lapped.stereo import each_channel, lapped_rows, mid_and_side
from tokenizer.networks.deviation import deviation
from tokenizer.networks.layers import Backbone
from tokenizer.networks.packing import PackedNetwork
from tokenizer.networks.spectral import mdct_blocks
from tokenizer.networks.stepping import Agreements
from tokenizer.precision import full_float32


class LappedEncoder(Encoder):
    """Audio ``[B, C, N]`` to latents ``[B, D, ceil(N / hop) + 1]``; C is 1, or 2 for stereo."""

    def __init__(self, config: LappedConfig) -> None:
        super().__init__()
        self.hop_length, self.num_channels = config.hop_length, config.channels
        bins = config.channels * config.hop_length
        self.linear = nn.Linear(bins, config.latent_dim, bias=False)
        # Of the log magnitudes: the other half of what the decoder learns without a network.
        self.envelope = nn.Linear(bins, config.latent_dim) if config.envelope_dim else None
        self.backbone = Backbone(
            2 * bins,
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
        """What the network sees of a channel: compressed coefficients and log magnitudes."""
        # asinh(30 c): torch's own takes eight times as long as these few passes.
        x = c * 30
        compressed = x.sign() * torch.log(x.abs() + (x.square() + 1).sqrt())
        return torch.cat([compressed / 3, log_magnitudes(c)], dim=-1)

    def linear_path(self, c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T D"]:
        """The linear path's part of the latents."""
        # It carries the waveform: fewer bits would cost it its precision.
        with full_float32():
            if self.envelope is None:
                return self.linear(c)
            return self.linear(c) + self.envelope(each_channel(log_magnitudes, c, self.hop_length))

    def enter(
        self, blocks: Float[Tensor, "*B blocks M"]
    ) -> tuple[Float[Tensor, "*B T C"], Float[Tensor, "*B T D"]]:
        """Blocks of samples to the first block's input and the linear path, for each two blocks."""
        c = each_channel(mdct_blocks, blocks, self.hop_length)
        seen = each_channel(self.features, c, self.hop_length)
        return self.backbone.enter(seen), self.linear_path(c)

    def leave(
        self, h: Float[Tensor, "*B T C"], linear: Float[Tensor, "*B T D"]
    ) -> Float[Tensor, "*B T D"]:
        """The last block's output and the linear path to latents, before their scale."""
        return self.head(self.backbone.norm_out(h)).float() + linear

    def forward(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """Encodes; divides by the batch's own deviation in training mode, else the running one."""
        h, linear = self.enter(lapped_rows(audio, self.hop_length))
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

    def noise_unit(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, ""]:
        """1: latents are divided by their deviation already."""
        return latents.new_ones(())

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
            widths=(self.linear.in_features, dim, dim),
            behind=1,
            agreements=self._agreements,
        )
        sizes = self.num_channels, self.hop_length
        return EncoderStepper(network, *sizes, self.head.weight.device)

    def packed(self) -> PackedNetwork | None:
        """See `Encoder.packed`."""
        if type(self).features is not LappedEncoder.features:
            return None
        backbone = self.backbone
        first = backbone.behind

        def run(rows: Tensor, inside: Tensor) -> Tensor:
            channels = mid_and_side(rows.unflatten(-1, (self.num_channels, -1)))
            # A frame laps over its own block of samples and the one before.
            h, linear = self.enter(channels.flatten(-2))
            h = backbone.masked(h, inside[:, 1:])
            last = h.shape[1] - backbone.ahead
            z = self.leave(h[:, first:last], linear[:, first:last])
            return z / self.latent_scale

        return PackedNetwork(run, (first + 1, backbone.ahead), backbone.gap)
