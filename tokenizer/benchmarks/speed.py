"""Encode and decode speed beside other codecs, in one run on this machine.

    python -m tokenizer.benchmarks.speed [--seconds 10] [--threads 2] [--peers dac encodec mimi]

The peers are `transformers` models of their published sizes with random weights (their speed does
not depend on them), at their own sampling rates. Each figure is the best of several repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.evaluation import as_table

Calls = tuple[Callable[[], object], Callable[[], object]]


def best_of(call: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _clip(seconds: float, rate: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.1, (1, round(seconds * rate))).astype(np.float32)


def ours(tokenizer: LatentTokenizer, seconds: float, n_codebooks: int) -> Calls:
    """Encode and decode of a file's worth of samples through the dataset surface."""
    rate = tokenizer.sampling_rate
    clip = {"array": _clip(seconds, rate), "sampling_rate": rate}
    row = tokenizer.encode_codes(clip, n_codebooks=n_codebooks)
    return (
        lambda: tokenizer.encode_codes(clip, n_codebooks=n_codebooks),
        lambda: tokenizer.decode_codes(row),
    )


def dac(seconds: float) -> Calls:
    """The Descript Audio Codec at 44.1 kHz, 9 codebooks."""
    from transformers import DacConfig, DacModel

    config = DacConfig(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8])
    model: Any = DacModel(config).eval()
    x = torch.from_numpy(_clip(seconds, 44_100))[None]
    codes = model.encode(x).audio_codes
    return lambda: model.encode(x), lambda: model.decode(audio_codes=codes)


def encodec(seconds: float) -> Calls:
    """EnCodec at 24 kHz, 6 kbit/s."""
    from transformers import EncodecConfig, EncodecModel

    model: Any = EncodecModel(EncodecConfig()).eval()
    x = torch.from_numpy(_clip(seconds, 24_000))[None]
    out = model.encode(x, bandwidth=6.0)
    return (
        lambda: model.encode(x, bandwidth=6.0),
        lambda: model.decode(out.audio_codes, out.audio_scales),
    )


def mimi(seconds: float) -> Calls:
    """Mimi at 24 kHz, 8 codebooks."""
    from transformers import MimiConfig, MimiModel

    model: Any = MimiModel(MimiConfig()).eval()
    x = torch.from_numpy(_clip(seconds, 24_000))[None]
    codes = model.encode(x, num_quantizers=8).audio_codes
    return lambda: model.encode(x, num_quantizers=8), lambda: model.decode(codes)


PEERS = {"dac": dac, "encodec": encodec, "mimi": mimi}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Encode and decode speed beside other codecs.")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=["dac"])
    parser.add_argument("--model", help="tokenizer; default: the bundled one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.model)
    rates = {f"{b} kbit/s": tokenizer.codebooks_for(1000 * b) for b in (3, 10, 16, 24)}
    entries: dict[str, Callable[[], Calls]] = {
        f"ours, {name}": lambda n=n: ours(tokenizer, options.seconds, n)
        for name, n in rates.items()
    }
    entries |= {name: lambda f=PEERS[name]: f(options.seconds) for name in options.peers}
    measured: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        for name, build in entries.items():
            encode, decode = build()
            measured[name] = (
                options.seconds / best_of(encode, options.repetitions),
                options.seconds / best_of(decode, options.repetitions),
            )
    base = measured.get("dac")
    rows = []
    for name, (encode_x, decode_x) in measured.items():
        ratios = [f"{encode_x / base[0]:.1f}", f"{decode_x / base[1]:.1f}"] if base else ["", ""]
        rows.append([name, f"{encode_x:.1f}", f"{decode_x:.1f}", *ratios])
    header = ["", "encode x real time", "decode x real time", "encode / DAC", "decode / DAC"]
    print(f"{options.seconds:g} s, {options.threads} CPU threads, torch {torch.__version__}")
    print(as_table(rows, header))


if __name__ == "__main__":
    main()
