"""The readers of `transformers`: DAC, EnCodec, Mimi, Pocket TTS, VibeVoice."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from tokenizer.autoencoders.convolutions import fix_padding, overhang
from tokenizer.autoencoders.reader import Parts, Reach, Reader, Sizes, hops
from tokenizer.autoencoders.strided import strided_sizes
from tokenizer.errors import InputError


def _dac_sizes(model: Any) -> Sizes:
    config = model.config
    return strided_sizes(model, config.sampling_rate, 1, config.hidden_size)


# EnCodec has an LSTM in its encoder and its decoder, so a frame depends on all that came before it.
#
# The 24 kHz model runs as in its own library. The 48 kHz model was trained on chunks of a second:
# it divides each by its level, and normalises activations over it. Here it runs on the whole
# signal, and the tokenizer divides by the level: one gain for the signal instead of one a chunk,
# the root mean square over both channels instead of that of their mean, which is 0 for channels in
# opposite phase. On a signal of one chunk whose channels are equal both are the same.


def _encodec_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    for network in (model.encoder, model.decoder):
        fix_padding(network)
    return model.encoder, model.decoder


def _encodec_sizes(model: Any) -> Sizes:
    config = model.config
    return Sizes(
        config.sampling_rate,
        config.audio_channels,
        prod(config.upsampling_ratios),
        config.hidden_size,
        encoder_reach=None,
        decoder_reach=None,
        normalize=config.normalize,
    )


# Mimi and Pocket TTS are causal: convolutions, and a transformer whose layers see a window of
# frames each. Latents are those before Mimi's quantizer.


def _mimi_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    if model.encoder is None or model.decoder is None:
        raise InputError(
            "The checkpoint holds one half of a codec: encoder and decoder are needed."
        )
    encoder = Parts(model.encoder, "encoder_seanet", "encoder_transformer", "downsample")
    decoder = Parts(model.decoder, "upsample", "decoder_transformer", "decoder_seanet")
    if hasattr(model, "latent_proj"):
        decoder.latent_proj = model.latent_proj
    for network in (encoder, decoder):
        fix_padding(network)
    return encoder, decoder


def _mimi_encode(net: Any, x: Tensor) -> Tensor:
    x = net.encoder_transformer(net.encoder_seanet(x).mT).last_hidden_state
    return net.downsample(x.mT)


def _mimi_decode(net: Any, z: Tensor) -> Tensor:
    z = net.upsample(net.latent_proj(z) if hasattr(net, "latent_proj") else z)
    return net.decoder_seanet(net.decoder_transformer(z.mT).last_hidden_state.mT)


def _mimi_sizes(model: Any) -> Sizes:
    config, encoder, decoder = model.config, model.encoder, model.decoder
    inner = prod(config.upsampling_ratios)
    hop = inner * encoder.downsample.conv.stride[0]
    reach: tuple[Reach, Reach] = (None, None)
    if config.use_causal_conv and config.sliding_window is not None:
        attention = config.num_hidden_layers * (config.sliding_window - 1) * inner
        seanet, downsample = encoder.encoder_seanet, encoder.downsample
        into = overhang(seanet, 1) + attention + overhang(downsample, inner)
        out = overhang(decoder.upsample, hop) + attention + overhang(decoder.decoder_seanet, inner)
        reach = ((hops(into, hop), 0), (hops(out, hop), 0))
    dim = encoder.downsample.conv.out_channels
    return Sizes(config.sampling_rate, config.audio_channels, hop, dim, *reach)


_SEANET = (
    "sampling_rate", "audio_channels", "hidden_size", "num_filters", "num_residual_layers",
    "upsampling_ratios", "kernel_size", "last_kernel_size", "residual_kernel_size",
    "dilation_growth_rate", "use_causal_conv", "pad_mode", "compress", "trim_right_ratio",
    "use_conv_shortcut",
)  # fmt: skip
_TRANSFORMER = (
    "upsample_groups", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "norm_eps",
    "rope_parameters", "sliding_window", "attention_bias",
)  # fmt: skip


# VibeVoice is causal convolutions. Its noise is left out, and its configuration has no sampling
# rate: it is 24 kHz.


def _vibevoice_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    names = ("stem", "conv_layers", "head")
    return Parts(model.encoder, *names), Parts(model.decoder, *names)


def _vibevoice_run(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    for layer in net.conv_layers:
        x = layer(x)
    return net.head(x)


def _vibevoice_sizes(model: Any) -> Sizes:
    config = model.config
    hop = prod(config.downsampling_ratios)
    into, out = overhang(model.encoder, 1), overhang(model.decoder, hop)
    reach = ((hops(into, hop), 0), (hops(out, hop), 0))
    return Sizes(24_000, config.channels, hop, config.hidden_size, *reach)


_DAC = (
    "sampling_rate", "hidden_size", "encoder_hidden_size", "decoder_hidden_size",
    "downsampling_ratios", "upsampling_ratios",
)  # fmt: skip
_VIBEVOICE = (
    "channels", "hidden_size", "kernel_size", "rms_norm_eps", "num_filters",
    "downsampling_ratios", "depths", "hidden_act", "ffn_expansion",
)  # fmt: skip

_ONE_BIT = {
    "num_quantizers": 2,
    "num_semantic_quantizers": 1,
    "codebook_size": 2,
    "codebook_dim": 1,
    "vector_quantization_hidden_dimension": 1,
}

READERS = {
    "dac": Reader(
        "transformers",
        "DacModel",
        model_type="dac",
        fields=_DAC,
        sizes=_dac_sizes,
        smallest={"n_codebooks": 1},
        ignored=("quantizer.",),
    ),
    "encodec": Reader(
        "transformers",
        "EncodecModel",
        model_type="encodec",
        fields=(*_SEANET, "normalize", "norm_type", "num_lstm_layers"),
        sizes=_encodec_sizes,
        halves=_encodec_halves,
        smallest={"target_bandwidths": [1.0], "codebook_size": 2},
        ignored=("quantizer.",),
        own_padding=True,
    ),
    "mimi": Reader(
        "transformers",
        "MimiModel",
        model_type="mimi",
        fields=(*_SEANET, *_TRANSFORMER, "frame_rate"),
        sizes=_mimi_sizes,
        halves=_mimi_halves,
        encode=_mimi_encode,
        decode=_mimi_decode,
        smallest=_ONE_BIT,
        ignored=("quantizer.",),
    ),
    "pocket-tts": Reader(
        "transformers",
        "PocketTTSAudioTokenizerModel",
        model_type="pocket_tts_audio_tokenizer",
        fields=(*_SEANET, *_TRANSFORMER, "latent_stride", "latent_dim"),
        sizes=_mimi_sizes,
        halves=_mimi_halves,
        encode=_mimi_encode,
        decode=_mimi_decode,
    ),
    "vibevoice": Reader(
        "transformers",
        "VibeVoiceAcousticTokenizerModel",
        model_type="vibevoice_acoustic_tokenizer",
        fields=_VIBEVOICE,
        sizes=_vibevoice_sizes,
        halves=_vibevoice_halves,
        encode=_vibevoice_run,
        decode=_vibevoice_run,
    ),
}
