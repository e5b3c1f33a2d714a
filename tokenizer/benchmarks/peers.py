"""Codecs that are compared: ours and those of other libraries, as calls on one clip.

The peers are models of their published sizes with random weights (their speed does not depend on
them), at their own sampling rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, load_tokenizer
from tokenizer.errors import StateError

Call = Callable[[], object]


@dataclass(frozen=True)
class Codec:
    """A codec on its clip.

    Attributes:
        encode: Audio to codes (or latents, of those that have no codes).
        decode: Back.
        first: Gives the seconds from the arrival of what the first audio out needs to that audio.
        waits: Seconds of audio that must have come before that.
        kbps: Nominal rate; None for latents.
        channels: Of the clip.
    """

    encode: Call
    decode: Call
    first: Callable[[], float]
    waits: float
    kbps: float | None
    channels: int = 1


def clip(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Noise, float32 ``[channels, N]``."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


def timed(call: Call) -> Callable[[], float]:
    """A call that gives the seconds it took."""

    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def ours(
    kbps: float | None,
    seconds: float,
    device: str,
    model: str | None = None,
    *,
    bf16: bool = False,
    greedy: bool = False,
) -> Codec:
    """Our tokenizer, a file's worth of samples through the dataset surface.

    Args:
        kbps: Rate; None for latents.
        seconds: Length of the clip.
        device: Where to compute.
        model: Tokenizer; None for the bundled one.
        bf16: Whether networks compute in bfloat16.
        greedy: Whether codes are searched greedily, as the peers do, and not by the model's beam.
    """
    tok: LatentTokenizer = load_tokenizer(model).to(device)  # pyright: ignore[reportArgumentType]
    if greedy:
        assert isinstance(tok.quantizer, ResidualVectorQuantizer)
        tok.quantizer.beam_width = 1
    rate = tok.sampling_rate
    audio = {"array": clip(seconds, rate), "sampling_rate": rate}
    n = None if kbps is None else tok.codebooks_for(1000 * kbps)

    def encode() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return (
                tok.encode_latents(audio) if n is None else tok.encode_codes(audio, n_codebooks=n)
            )

    def decode() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return tok.decode_latents(row) if n is None else tok.decode_codes(row)

    wave = clip(2 * tok.latency + 0.1, rate)

    def first() -> float:
        encoder = tok.stream_encoder(n_codebooks=n, latents=n is None)
        decoder = tok.stream_decoder(latents=n is None)
        step = tok.hop_length
        for start in range(0, wave.shape[1], step):
            began = time.perf_counter()
            if decoder.push(encoder.push(wave[:, start : start + step])).shape[1]:
                return time.perf_counter() - began
        raise StateError("Nothing came out of the stream.")

    row = encode()
    return Codec(encode, decode, first, tok.latency, kbps)


def dac(seconds: float, device: str) -> Codec:
    """The Descript Audio Codec at 44.1 kHz, 9 codebooks."""
    from transformers import DacConfig, DacModel

    config = DacConfig(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8])
    model: Any = DacModel(config)
    model = model.eval().to(device)
    x = torch.from_numpy(clip(seconds, 44_100))[None].to(device)
    codes = model.encode(x).audio_codes
    # It is not made for streams: its smallest piece is as long as it sees.
    short = x[..., : 44_100 // 2]
    return Codec(
        lambda: model.encode(x),
        lambda: model.decode(audio_codes=codes),
        timed(lambda: model.decode(audio_codes=model.encode(short).audio_codes)),
        0.5,
        7.75,
    )


def encodec(seconds: float, device: str) -> Codec:
    """EnCodec at 24 kHz, 6 kbit/s."""
    from transformers import EncodecConfig, EncodecModel

    model: Any = EncodecModel(EncodecConfig())
    model = model.eval().to(device)
    x = torch.from_numpy(clip(seconds, 24_000))[None].to(device)
    out = model.encode(x, bandwidth=6.0)
    short = x[..., :320]

    def both() -> None:
        codes = model.encode(short, bandwidth=6.0)
        model.decode(codes.audio_codes, codes.audio_scales)

    return Codec(
        lambda: model.encode(x, bandwidth=6.0),
        lambda: model.decode(out.audio_codes, out.audio_scales),
        timed(both),
        320 / 24_000,
        6.0,
    )


def mimi(seconds: float, device: str) -> Codec:
    """Mimi at 24 kHz, 8 codebooks."""
    from transformers import MimiConfig, MimiModel

    model: Any = MimiModel(MimiConfig())
    model = model.eval().to(device)
    x = torch.from_numpy(clip(seconds, 24_000))[None].to(device)
    codes = model.encode(x, num_quantizers=8).audio_codes
    short = x[..., :1920]
    return Codec(
        lambda: model.encode(x, num_quantizers=8),
        lambda: model.decode(codes),
        timed(lambda: model.decode(model.encode(short, num_quantizers=8).audio_codes)),
        0.08,
        1.1,
    )


def oobleck(seconds: float, device: str) -> Codec:
    """Stable Audio's autoencoder at 44.1 kHz, stereo, latents."""
    from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]

    model: Any = AutoencoderOobleck()
    model = model.eval().to(device)
    x = torch.from_numpy(clip(seconds, 44_100, 2))[None].to(device)
    x = x[..., : x.shape[-1] // model.hop_length * model.hop_length]
    short = x[..., : model.hop_length * 10]

    def encode(audio: torch.Tensor) -> torch.Tensor:
        return model.encode(audio).latent_dist.mode()

    latents = encode(x)
    return Codec(
        lambda: encode(x),
        lambda: model.decode(latents).sample,
        timed(lambda: model.decode(encode(short)).sample),
        short.shape[-1] / 44_100,
        None,
        2,
    )


PEERS: dict[str, Callable[[float, str], Codec]] = {
    "dac": dac,
    "encodec": encodec,
    "mimi": mimi,
    "oobleck": oobleck,
}
