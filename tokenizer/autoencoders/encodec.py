"""``transformers.EncodecModel`` as an autoencoder: encoder and decoder without quantizer.

EnCodec has an LSTM in its encoder and its decoder, so a frame depends on all that came before it
and audio cannot be coded in tiles: memory grows with length.

The 24 kHz model runs as in its own library. The 48 kHz model was trained on chunks of a second: it
divides each by its level, and normalises activations over it. Here it runs on the whole signal, and
the tokenizer divides by the level (``normalize``): one gain for the signal instead of one a chunk,
the root mean square over both channels instead of that of their mean, which is 0 for channels in
opposite phase. On a signal of one chunk whose channels are equal both are the same.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from tokenizer.autoencoders.base import Encoder
from tokenizer.autoencoders.pretrained import LibraryAutoencoder, LibraryDecoder


def _exact_padding(stride: int, hidden_states: Tensor) -> int:
    return -hidden_states.shape[-1] % stride


def _fix_padding(network: nn.Module) -> None:
    """Makes the library's padded convolutions exact and safe to load, in place.

    The library keeps kernel size and stride in buffers that are not saved, and pads by a float32
    formula that loses a frame beyond 2^24 samples (12 minutes). Here they are plain integers.
    """
    for module in network.modules():
        if not hasattr(module, "padding_total"):
            continue
        conv = module.conv
        assert isinstance(conv, nn.Conv1d)
        stride, kernel = conv.stride[0], (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        for name in ("stride", "kernel_size", "padding_total"):
            delattr(module, name)  # a buffer's name is reserved for tensors
        exact = {
            "stride": stride,
            "kernel_size": kernel,
            "padding_total": kernel - stride,
            "_get_extra_padding_for_conv1d": partial(_exact_padding, stride),
        }
        for name, value in exact.items():
            setattr(module, name, value)


class EncodecEncoder(Encoder):
    """Audio ``[B, C, N]`` to latents ``[B, D, ceil(N / hop)]``, by an LSTM: it has no context."""

    context = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """Encodes audio of any length; the network pads it to whole frames by reflection."""
        return self.network(audio)


class EncodecAutoencoder(LibraryAutoencoder):
    """EnCodec; see the module's docstring for what the 48 kHz model does differently here."""

    kind: ClassVar[str] = "encodec"
    fields: ClassVar[tuple[str, ...]] = (
        "sampling_rate",
        "audio_channels",
        "normalize",
        "hidden_size",
        "num_filters",
        "num_residual_layers",
        "upsampling_ratios",
        "norm_type",
        "kernel_size",
        "last_kernel_size",
        "residual_kernel_size",
        "dilation_growth_rate",
        "use_causal_conv",
        "pad_mode",
        "compress",
        "num_lstm_layers",
        "trim_right_ratio",
        "use_conv_shortcut",
    )

    def __init__(self, model: EncodecModel) -> None:
        super().__init__(model)
        for network in (model.encoder, model.decoder):
            _fix_padding(network)
        self.encoder = EncodecEncoder(model.encoder)
        self.decoder = LibraryDecoder(model.decoder, None)
        config = model.config
        self.sampling_rate = config.sampling_rate
        self.hop_length = prod(config.upsampling_ratios)
        self.latent_dim = config.hidden_size
        self.num_channels = config.audio_channels
        self.normalize = config.normalize

    @classmethod
    def model_class(cls) -> type[EncodecModel]:
        """``transformers.EncodecModel``."""
        return EncodecModel

    @classmethod
    def untrained(cls, config: dict[str, Any]) -> EncodecModel:
        """See `LibraryAutoencoder.untrained`."""
        return EncodecModel(EncodecConfig(**config, target_bandwidths=[1.0], codebook_size=2))
