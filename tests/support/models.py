"""Small seeded models that many tests share; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import TypeCheckError

from tokenizer.audio import AudioSource, SignalInfo
from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.autoencoders.lapped.paths import LevelStatistics
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.rows import code_dtype
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource
from tokenizer.transcoding.files import file_gain, open_codes

# Under the type checker of the tests a wrong type is refused before our own check sees it.
REFUSED = (ValueError, TypeCheckError)

RATE, HOP, DIM, CODEBOOKS, ENTRIES = 8000, 80, 8, 4, 16
# What `save_pretrained` writes.
FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]


def flat_levels(hop: int) -> LevelStatistics:
    """Statistics of no audio in particular."""
    return LevelStatistics(torch.zeros(hop), torch.eye(hop) + 0.5)


def make_autoencoder() -> LappedAutoencoder:
    torch.manual_seed(0)
    model = LappedAutoencoder(
        LappedConfig(
            sampling_rate=RATE,
            hop_length=HOP,
            latent_dim=DIM,
            encoder_width=16,
            encoder_depth=2,
            decoder_width=16,
            decoder_depth=2,
        )
    )
    model.initialize(torch.diag(torch.linspace(2, 0.01, HOP)))
    return model.eval()


def make_stereo_autoencoder(**sizes: Any) -> LappedAutoencoder:
    """Of stereo, with levels and noise; its networks are random, not near zero."""
    torch.manual_seed(1)
    config = make_autoencoder().to_config() | {"channels": 2, "envelope_dim": 3, "noise": True}
    model = LappedAutoencoder.from_config(config | sizes)
    levels = flat_levels(2 * HOP) if model.config.envelope_dim else None
    # Mid as loud as side.
    model.initialize(torch.diag(torch.linspace(2, 0.01, HOP).repeat(2)), levels)
    with torch.no_grad():
        torch.nn.init.normal_(model.encoder.head.weight, std=0.3)
        torch.nn.init.normal_(model.decoder.head.weight, std=0.3)
    return model.eval()


def make_tokenizer(autoencoder: LappedAutoencoder | None = None, **options) -> LatentTokenizer:
    """A tokenizer with a fitted quantizer and a decoder that differs from the continuous one."""
    tokenizer = LatentTokenizer.from_autoencoder(autoencoder or make_autoencoder())
    channels = tokenizer.autoencoder.num_channels
    clips = torch.from_numpy(np.stack([tone(3.0, RATE, channels, seed) for seed in range(8)]))
    latents = tokenizer.encode(clips).latents.transpose(1, 2).reshape(-1, DIM)
    quantizer = ResidualVectorQuantizer(DIM, CODEBOOKS, ENTRIES, **options)
    quantizer.fit(TensorSource(latents.clone()), generator=torch.Generator().manual_seed(0))
    tokenizer.set_quantizer(quantizer)
    tokenizer.latents_mean.copy_(latents.mean(0))
    tokenizer.latents_std.copy_(latents.std(0))
    decoder = tokenizer.add_finetuned_decoder()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(0.9)
    return tokenizer.eval()


def tone(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A few partials and some noise, float32 ``[C, N]``."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    waves = []
    for _ in range(channels):
        partials = [np.sin(2 * np.pi * f * t + p) for f, p in rng.uniform(80, 3000, (5, 2))]
        waves.append(0.05 * np.sum(partials, 0) + 0.01 * rng.normal(size=len(t)))
    return np.stack(waves).astype(np.float32)


class GeneratedSignal:
    """A signal of one channel whose blocks a function makes."""

    def __init__(self, decode: Callable[[], Iterator[np.ndarray]], rate: int) -> None:
        self.blocks, self.name, self._rate = decode, "generated", rate

    def info(self) -> SignalInfo:
        return SignalInfo(self._rate, 1, 2**62)

    def read(self, first: int, count: int) -> np.ndarray:
        raise NotImplementedError


def generated_source(
    decode: Callable[[], Iterator[np.ndarray]], rate: int = RATE, target_rate: int = RATE
) -> AudioSource:
    return AudioSource(GeneratedSignal(decode, rate), target_rate=target_rate)


def read_row(source: Any, tokenizer: LatentTokenizer) -> dict[str, Any]:
    """A code file as the row that `LatentTokenizer.encode_codes` had given."""
    with open_codes(source, tokenizer, None) as (reader, _):
        codes, header = reader.read_all(), reader.header
    return {
        "codes": codes.reshape(-1, codes.shape[-1]).astype(code_dtype(header.codebook_sizes)),
        "num_samples": header.num_samples,
        "num_channels": header.num_channels,
        "gain": file_gain(header),
    }
