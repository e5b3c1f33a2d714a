"""Small models of other libraries, with random weights that pass a signal."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    AutoencoderOobleck = diffusers.AutoencoderOobleck

_SEANET = {
    "sampling_rate": 8000,
    "num_filters": 4,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "sliding_window": 3,
    "upsample_groups": 8,
    "layer_scale_initial_scale": 0.5,
}
_DAC = {
    "encoder_hidden_size": 3,
    "decoder_hidden_size": 24,
    "n_codebooks": 1,
    "codebook_size": 16,
    "sampling_rate": 8000,
}
_ENCODEC = {"num_filters": 4, "hidden_size": 6, "codebook_size": 16, "sampling_rate": 8000}
_OOBLECK = {
    "encoder_hidden_size": 8,
    "decoder_input_channels": 4,
    "decoder_channels": 4,
    "sampling_rate": 8000,
}


@dataclass(frozen=True)
class Case:
    """A model of a library: its class, its sizes, and what our adapter shall say of it."""

    model: str
    options: dict[str, Any]
    num_channels: int = 1
    sampling_rate: int = 8000
    whole: tuple[bool, bool] = (False, False)  # encoder and decoder
    normalize: bool = False

    @property
    def model_class(self) -> Any:
        return getattr(diffusers, self.model, None) or getattr(transformers, self.model)


CASES = {
    "dac": Case("DacModel", _DAC | {"downsampling_ratios": [2, 4]}),
    "dac-odd": Case("DacModel", _DAC | {"downsampling_ratios": [2, 3, 5]}),
    "oobleck": Case(
        "AutoencoderOobleck",
        _OOBLECK | {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2]},
        num_channels=2,
    ),
    "oobleck-odd": Case(
        "AutoencoderOobleck",
        _OOBLECK
        | {"downsampling_ratios": [3, 2], "channel_multiples": [2, 1], "audio_channels": 1},
    ),
    "encodec": Case("EncodecModel", _ENCODEC | {"upsampling_ratios": [3, 2]}, whole=(True, True)),
    "encodec-48": Case(
        "EncodecModel",
        _ENCODEC
        | {
            "upsampling_ratios": [4, 2],
            "audio_channels": 2,
            "normalize": True,
            "norm_type": "time_group_norm",
            "use_causal_conv": False,
            "chunk_length_s": 1.0,
            "overlap": 0.01,
        },
        num_channels=2,
        whole=(True, True),
        normalize=True,
    ),
    "mimi": Case(
        "MimiModel",
        _SEANET
        | {
            "upsampling_ratios": [4, 2],
            "frame_rate": 500.0,
            "codebook_size": 16,
            "codebook_dim": 4,
            "vector_quantization_hidden_dimension": 4,
            "num_quantizers": 2,
        },
    ),
    "pocket-tts": Case(
        "PocketTTSAudioTokenizerModel",
        _SEANET | {"upsampling_ratios": [3, 2], "latent_stride": 4, "latent_dim": 5},
    ),
    "vibevoice": Case(
        "VibeVoiceAcousticTokenizerModel",
        {
            "hidden_size": 6,
            "num_filters": 4,
            "downsampling_ratios": (2, 5),
            "depths": (1, 1, 2),
            "layer_scale_init_value": 0.5,
            "initializer_range": 0.3,
        },
        sampling_rate=24_000,
    ),
    "same": Case(
        "AutoencoderSAME",
        {
            "patch_size": 4,
            "encoder_channels": 8,
            "encoder_c_mults": (2, 2),
            "encoder_strides": (2, 3),
            "encoder_transformer_depths": (1, 2),
            "latent_dim": 6,
            "dim_heads": 8,
            "decoder_sinusoidal_blocks": (2,),
            "sampling_rate": 8000,
        },
        num_channels=2,
    ),
    "longcat": Case(
        "LongCatAudioDiTVae",
        {
            "channels": 4,
            "c_mults": [1, 2],
            "strides": [2, 4],
            "latent_dim": 4,
            "encoder_latent_dim": 8,
            "sample_rate": 8000,
        },
    ),
    "kvae": Case(
        "AutoencoderKLKVAEAudio",
        {
            "encoder_dim": 4,
            "encoder_rates": [2, 3],
            "latent_dim": 8,
            "codebook_dim": 4,
            "decoder_dim": 16,
            "decoder_rates": [3, 2],
            "sample_rate": 8000,
            "attn_num_heads": 2,
        },
        whole=(True, False),
    ),
    "minimax": Case(
        "AutoencoderKLMiniMaxH3Audio",
        {
            "encoder_dim": 4,
            "encoder_rates": (2, 5),
            "latent_dim": 8,
            "latent_channels": 4,
            "num_attention_heads": 2,
            "decoder_dim": 16,
            "decoder_rates": (5, 2),
            "decoder_kernel_sizes": (9, 4),
            "resblock_kernel_sizes": (3, 5),
            "resblock_dilation_sizes": ((1, 3), (1, 3)),
            "sampling_rate": 8000,
            "latents_mean": [0.5, -0.25, 0.0, 1.0],
            "latents_std": [1.0, 2.0, 0.5, 1.5],
        },
        whole=(True, False),
    ),
    "cosmos": Case(
        "Cosmos3AVAEAudioTokenizer",
        {
            "vocoder_input_dim": 4,
            "dec_dim": 4,
            "dec_c_mults": (1, 2),
            "dec_strides": (3, 8),
            "enc_dim": 8,
            "enc_num_blocks": 1,
            "enc_n_fft": 16,
            "enc_hop_length": 4,
            "enc_latent_dim": 8,
            "enc_c_mults": (1, 2),
            "enc_strides": (2, 3),
            "sampling_rate": 8000,
        },
        num_channels=2,
        normalize=True,
    ),
}


def make_library_model(name: str) -> Any:
    case = CASES[name]
    torch.manual_seed(0)
    model_class = case.model_class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if issubclass(model_class, transformers.PreTrainedModel):
            model = model_class(model_class.config_class(**case.options))
        else:
            model = model_class(**case.options)
    # Freshly made, some of them hardly pass a signal, and all activations are alike.
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith((".alpha", ".beta")):
                value.add_(0.3 * torch.rand_like(value))
            elif name.startswith("dac") and value.ndim == 3:
                value.normal_(std=0.7 * (value.shape[1] * value.shape[2]) ** -0.5)
            elif value.ndim == 2 and bool((value == 0).all()):  # SAME's branches
                value.normal_(std=0.5 * value.shape[1] ** -0.5)
    return model.eval()


# All of them take minutes: the quick lane runs a stereo one and one with a transformer.
QUICK = ("oobleck", "mimi")


# `LATOK_ALL=1 pytest ...` runs what takes too long for every run: each class where some do.
EVERYTHING = bool(os.environ.get("LATOK_ALL"))


def cases(names: Iterable[str] = CASES) -> list[Any]:
    """Names of cases as parameters of a test; most are marked slow."""
    slow = pytest.mark.slow
    return [name if name in QUICK else pytest.param(name, marks=slow) for name in names]


def saved(root: Path, name: str) -> Path:
    """The folder of a case, written by its own library."""
    folder = root / name
    if not folder.exists():
        make_library_model(name).save_pretrained(folder)
    return folder


def load_library_model(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return CASES[folder.name].model_class.from_pretrained(folder).eval()


def library_encode(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The library's own latents ``[B, D, T]`` of whole hops, without noise and quantizer."""
    kind = type(model).__name__
    if kind in ("DacModel", "EncodecModel"):
        return model.encoder(x)
    if kind == "MimiModel":
        return model.encoder(x).latents
    if kind == "PocketTTSAudioTokenizerModel":
        return model.encode(x).latents.mT
    if kind == "VibeVoiceAcousticTokenizerModel":
        return model.encode(x, sample=False).latents.mT
    if kind == "AutoencoderSAME":
        return model.encode(x).latents
    if kind == "LongCatAudioDiTVae":
        return model.encode(x, sample_posterior=False).latents
    return model.encode(x).latent_dist.mode()


def library_decode(model: Any, z: torch.Tensor) -> torch.Tensor:
    """The library's own audio of latents ``[B, D, T]``."""
    kind = type(model).__name__
    if kind in ("DacModel", "EncodecModel"):
        return model.decoder(z)
    if kind == "MimiModel":
        return model.decoder(z).audio_values
    if kind == "PocketTTSAudioTokenizerModel":
        return model.decode(z.mT).audio_values
    if kind == "VibeVoiceAcousticTokenizerModel":
        return model.decode(z.mT).audio
    if kind == "Cosmos3AVAEAudioTokenizer":
        return model.decode(z)
    return model.decode(z).sample
