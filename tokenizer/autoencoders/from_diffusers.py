"""The readers of `diffusers`: Oobleck, SAME, LongCat, KVAE, MiniMax, Cosmos."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from tokenizer.autoencoders.convolutions import receptive_field
from tokenizer.autoencoders.reader import Parts, Reader, Sizes, hops
from tokenizer.autoencoders.strided import decoder_reach, strided_sizes
from tokenizer.errors import InputError


def _check_posterior(what: str, width: int, latent_dim: int) -> None:
    if width != 2 * latent_dim:
        raise InputError(
            f"{what}={width} is not twice the {latent_dim} latents of the decoder: the encoder's "
            "output is not a mean and a scale of the decoder's input."
        )


def _oobleck_sizes(model: Any) -> Sizes:
    config = model.config
    dim = config.decoder_input_channels
    _check_posterior("encoder_hidden_size", config.encoder_hidden_size, dim)
    return strided_sizes(model, config.sampling_rate, config.audio_channels, dim)


def _oobleck_deviations(scale: Tensor) -> Tensor:
    return nn.functional.softplus(scale) + 1e-4


# SAME: patches of samples, and transformers whose layers see a window of frames on either side.


def _same_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    decoder = Parts(model, "decoder", "patch_embed")
    # The bottleneck's other weights are of the encoder alone.
    decoder.register_buffer("running_std", model.bottleneck.running_std.clone())
    return Parts(model, "patch_embed", "encoder", "bottleneck"), decoder


def _same_encode(net: Any, x: Tensor) -> Tensor:
    return net.bottleneck.encode(net.encoder(net.patch_embed.encode(x)))


def _same_decode(net: Any, z: Tensor) -> Tensor:
    return net.patch_embed.decode(net.decoder(z * net.running_std))


def _same_sizes(model: Any) -> Sizes:
    config = model.config
    strides = list(config.encoder_strides)
    # A layer sees `sliding_window` segments, each of which is a frame after the stride.
    context = sum(
        hops(depth * config.sliding_window, prod(strides[i + 1 :]))
        for i, depth in enumerate(config.encoder_transformer_depths)
    )
    hop = config.patch_size * prod(strides)
    reach = ((context, context), (context, context))
    return Sizes(config.sampling_rate, config.audio_channels, hop, config.latent_dim, *reach)


# LongCat: convolutions with shortcuts around each stage, which need whole hops.


def _longcat_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    return Parts(model, "encoder"), Parts(model, "decoder")


def _longcat_encode(net: Any, x: Tensor) -> Tensor:
    return net.encoder(x) / net.config.scale


def _longcat_decode(net: Any, z: Tensor) -> Tensor:
    return net.decoder(z * net.config.scale)


def _longcat_sizes(model: Any) -> Sizes:
    config = model.config
    _check_posterior("encoder_latent_dim", config.encoder_latent_dim, config.latent_dim)
    return strided_sizes(model, config.sample_rate, config.in_channels, config.latent_dim)


# KVAE: convolutions, and in the encoder attention to the whole signal.


def _kvae_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    return Parts(model, "encoder", "attn", "in_proj"), Parts(model, "out_proj", "decoder")


def _kvae_encode(net: Any, x: Tensor) -> Tensor:
    return net.in_proj(net.attn(net.encoder(x).mT).mT.contiguous())


def _kvae_decode(net: Any, z: Tensor) -> Tensor:
    return net.decoder(net.out_proj(z))


def _kvae_sizes(model: Any) -> Sizes:
    config = model.config
    hop = prod(config.encoder_rates)
    reach = (None, decoder_reach(_kvae_halves(model)[1], hop))
    return Sizes(config.sample_rate, config.num_channels, hop, config.codebook_dim, *reach)


# MiniMax: DAC's encoder with attention to all that came before, BigVGAN's decoder.


def _minimax_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    encoder = Parts(model, "encoder", "pre_block", "mean_proj")
    return encoder, Parts(model, "dec_in_proj", "decoder")


def _minimax_encode(net: Any, x: Tensor) -> Tensor:
    return net.mean_proj(net.pre_block(net.encoder(x).mT).mT)


def _minimax_decode(net: Any, z: Tensor) -> Tensor:
    return net.decoder(net.dec_in_proj(z))


# An activation is computed at twice the rate, between filters of 12 taps up and down.
_FILTERS = 6


def _minimax_sizes(model: Any) -> Sizes:
    config = model.config
    hop = prod(config.encoder_rates)
    unit, samples = hop, 3 * hop  # the first convolution
    for rate, kernel in zip(config.decoder_rates, config.decoder_kernel_sizes, strict=True):
        samples += hops(kernel, rate) * unit
        unit //= rate
        widest = max(
            sum((size - 1) * (dilation + 1) // 2 + 2 * _FILTERS for dilation in dilations)
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )
        samples += widest * unit
    context = hops(samples + 3 + _FILTERS, hop)
    mean, std = config.latents_mean, config.latents_std
    return Sizes(
        config.sampling_rate,
        1,
        hop,
        config.latent_channels,
        encoder_reach=None,
        decoder_reach=(context, context),
        latents_mean=None if mean is None else tuple(mean),
        latents_std=None if std is None else tuple(std),
    )


# Cosmos: a spectrogram, convolutions on it, and Oobleck's decoder. The library divides the audio of
# each call by its peak and does not give the level back; here the tokenizer does both, with the
# peak of the whole file.


def _cosmos_halves(model: Any) -> tuple[nn.Module, nn.Module]:
    if model.encoder is None:
        raise InputError("The checkpoint holds a decoder without its encoder: it cannot encode.")
    return model.encoder, model.decoder


def _cosmos_encode(net: Any, x: Tensor) -> Tensor:
    return net(x).mT


def _cosmos_decode(net: Any, z: Tensor) -> Tensor:
    return net(z).clamp(-1, 1)


def _cosmos_sizes(model: Any) -> Sizes:
    config = model.config
    encoder, decoder = _cosmos_halves(model)
    _check_posterior("enc_latent_dim", config.enc_latent_dim, config.vocoder_input_dim)
    hop = prod(config.dec_strides)
    if prod(config.enc_strides) * config.enc_hop_length != hop:
        raise InputError(
            f"enc_strides={list(config.enc_strides)} of {config.enc_hop_length} samples are not "
            f"the decoder's hop of {hop}."
        )
    first, last = receptive_field(encoder, 0, 0)
    overlap = config.enc_n_fft - config.enc_hop_length
    first = first * config.enc_hop_length - overlap // 2
    last = last * config.enc_hop_length - overlap // 2 + config.enc_n_fft - 1
    context = max(-(first // hop), last // hop)
    whole = config.padding_mode == "circular"  # joins the ends of the signal
    return Sizes(
        config.sampling_rate,
        config.dec_out_channels,
        hop,
        config.vocoder_input_dim,
        encoder_reach=None if whole else (context, context),
        decoder_reach=decoder_reach(decoder, hop),
        normalize=config.normalize_volume,
        peak=0.95,
    )


_OOBLECK = (
    "encoder_hidden_size", "downsampling_ratios", "channel_multiples", "decoder_channels",
    "decoder_input_channels", "audio_channels", "sampling_rate",
)  # fmt: skip
_SAME = (
    "audio_channels", "patch_size", "encoder_channels", "encoder_c_mults", "encoder_strides",
    "encoder_transformer_depths", "latent_dim", "use_differential_attention", "dim_heads",
    "ff_mult", "sliding_window", "encoder_sinusoidal_blocks", "decoder_sinusoidal_blocks",
    "sampling_rate",
)  # fmt: skip
_LONGCAT = (
    "in_channels", "channels", "c_mults", "strides", "latent_dim", "encoder_latent_dim", "act_fn",
    "use_snake", "downsample_shortcut", "upsample_shortcut", "out_shortcut", "in_shortcut",
    "final_tanh", "sample_rate", "scale",
)  # fmt: skip
_KVAE = (
    "encoder_dim", "encoder_rates", "latent_dim", "codebook_dim", "decoder_dim", "decoder_rates",
    "sample_rate", "num_channels", "attn_num_heads",
)  # fmt: skip
_MINIMAX = (
    "encoder_dim", "encoder_rates", "latent_dim", "latent_channels", "num_attention_heads",
    "decoder_dim", "decoder_rates", "decoder_kernel_sizes", "resblock_kernel_sizes",
    "resblock_dilation_sizes", "sampling_rate", "latents_mean", "latents_std",
)  # fmt: skip
_COSMOS = (
    "sampling_rate", "vocoder_input_dim", "dec_dim", "dec_c_mults", "dec_strides",
    "dec_out_channels", "stereo", "normalize_volume", "input_channels", "enc_dim",
    "enc_num_blocks", "enc_n_fft", "enc_hop_length", "enc_latent_dim", "enc_c_mults",
    "enc_strides", "enc_use_snake", "causal", "padding_mode",
)  # fmt: skip

READERS = {
    "oobleck": Reader(
        "diffusers",
        "AutoencoderOobleck",
        fields=_OOBLECK,
        sizes=_oobleck_sizes,
        deviations=_oobleck_deviations,
        since="0.37",
    ),
    "same": Reader(
        "diffusers",
        "AutoencoderSAME",
        fields=_SAME,
        sizes=_same_sizes,
        halves=_same_halves,
        encode=_same_encode,
        decode=_same_decode,
        since="0.42",
    ),
    "longcat": Reader(
        "diffusers",
        "LongCatAudioDiTVae",
        fields=_LONGCAT,
        sizes=_longcat_sizes,
        halves=_longcat_halves,
        encode=_longcat_encode,
        decode=_longcat_decode,
        since="0.42",
    ),
    "kvae": Reader(
        "diffusers",
        "AutoencoderKLKVAEAudio",
        fields=_KVAE,
        sizes=_kvae_sizes,
        halves=_kvae_halves,
        encode=_kvae_encode,
        decode=_kvae_decode,
        since="0.42",
    ),
    "minimax": Reader(
        "diffusers",
        "AutoencoderKLMiniMaxH3Audio",
        fields=_MINIMAX,
        sizes=_minimax_sizes,
        halves=_minimax_halves,
        encode=_minimax_encode,
        decode=_minimax_decode,
        ignored=("logs_proj.",),
        since="0.42",
    ),
    "cosmos": Reader(
        "diffusers",
        "Cosmos3AVAEAudioTokenizer",
        fields=_COSMOS,
        sizes=_cosmos_sizes,
        halves=_cosmos_halves,
        encode=_cosmos_encode,
        decode=_cosmos_decode,
        since="0.42",
    ),
}
