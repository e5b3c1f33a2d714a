"""Codecs that are compared: ours and those of other libraries, as calls on one clip.

The peers are models of their published sizes with random weights (their speed does not depend on
them), at their own sampling rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, load_tokenizer
from tokenizer.benchmarks.machine import Call
from tokenizer.errors import StateError
from tokenizer.evaluation.coding import timed


@dataclass(frozen=True)
class Codec:
    """A codec on its clip.

    Attributes:
        encode: Audio to codes (or latents, of those that have no codes).
        decode: Back.
        first: Gives the seconds from the arrival of what the first audio out needs to that audio.
        waits: Seconds of audio that must have come before that.
        kbps: Nominal rate; None for latents.
    """

    encode: Call
    decode: Call
    first: Callable[[], float]
    waits: float
    kbps: float | None


def clip(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Noise, float32 ``[channels, N]``."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


def ours(
    kbps: float | None,
    seconds: float,
    device: str,
    model: str | None = None,
    *,
    greedy: bool = False,
) -> Codec:
    """Our tokenizer, a file's worth of samples through the dataset surface.

    ``greedy``: codes are searched greedily, as the peers do, and not by the model's beam.
    """
    tok: LatentTokenizer = load_tokenizer(model).to(device)  # pyright: ignore[reportArgumentType]
    if greedy:
        assert isinstance(tok.quantizer, ResidualVectorQuantizer)
        tok.quantizer.beam_width = 1
    rate = tok.sampling_rate
    audio = {"array": clip(seconds, rate), "sampling_rate": rate}
    n = None if kbps is None else tok.codebooks_for(1000 * kbps)

    def encode() -> Any:
        return tok.encode_latents(audio) if n is None else tok.encode_codes(audio, n_codebooks=n)

    def decode() -> Any:
        return tok.decode_latents(row) if n is None else tok.decode_codes(row)

    wave = clip(2 * tok.latency + 0.1, rate)

    def first() -> float:
        encoder = tok.stream_encoder(n_codebooks=n, latents=n is None)
        decoder = tok.stream_decoder(latents=n is None)
        for start in range(0, wave.shape[1], tok.hop_length):
            piece = wave[:, start : start + tok.hop_length]
            out, taken = timed(lambda piece=piece: decoder.push(encoder.push(piece)))
            if out.shape[1]:
                return taken
        raise StateError("Nothing came out of the stream.")

    row = encode()
    return Codec(encode, decode, first, tok.latency, kbps)


def _peer(
    x: np.ndarray,
    rate: int,
    piece: int,
    kbps: float | None,
    device: str,
    encode: Callable[[Tensor], Any],
    decode: Callable[[Any], Any],
) -> Codec:
    """Another codec on ``[C, N]``; its first audio out needs a piece of so many samples."""
    audio = torch.from_numpy(x)[None].to(device)
    codes, short = encode(audio), audio[..., :piece]
    return Codec(
        lambda: encode(audio),
        lambda: decode(codes),
        lambda: timed(lambda: decode(encode(short)))[1],
        piece / rate,
        kbps,
    )


def dac(seconds: float, device: str) -> Codec:
    """The Descript Audio Codec at 44.1 kHz, 9 codebooks."""
    from transformers import DacConfig, DacModel

    model: Any = DacModel(DacConfig(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8]))
    model.eval().to(device)
    # It is not made for streams: its smallest piece is as long as it sees.
    return _peer(
        clip(seconds, 44_100), 44_100, 22_050, 7.75, device,
        lambda x: model.encode(x).audio_codes,
        lambda codes: model.decode(audio_codes=codes),
    )  # fmt: skip


def encodec(seconds: float, device: str) -> Codec:
    """EnCodec at 24 kHz, 6 kbit/s."""
    from transformers import EncodecConfig, EncodecModel

    model: Any = EncodecModel(EncodecConfig())
    model.eval().to(device)
    return _peer(
        clip(seconds, 24_000), 24_000, 320, 6.0, device,
        lambda x: model.encode(x, bandwidth=6.0),
        lambda out: model.decode(out.audio_codes, out.audio_scales),
    )  # fmt: skip


def mimi(seconds: float, device: str) -> Codec:
    """Mimi at 24 kHz, 8 codebooks."""
    from transformers import MimiConfig, MimiModel

    model: Any = MimiModel(MimiConfig())
    model.eval().to(device)
    return _peer(
        clip(seconds, 24_000), 24_000, 1920, 1.1, device,
        lambda x: model.encode(x, num_quantizers=8).audio_codes,
        model.decode,
    )  # fmt: skip


def oobleck(seconds: float, device: str) -> Codec:
    """Stable Audio's autoencoder at 44.1 kHz, stereo, latents."""
    from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]

    model: Any = AutoencoderOobleck()
    model.eval().to(device)
    hop = model.hop_length
    x = clip(seconds, 44_100, 2)
    return _peer(
        x[:, : x.shape[1] // hop * hop], 44_100, 10 * hop, None, device,
        lambda x: model.encode(x).latent_dist.mode(),
        lambda latents: model.decode(latents).sample,
    )  # fmt: skip


PEERS = {"dac": dac, "encodec": encodec, "mimi": mimi, "oobleck": oobleck}
