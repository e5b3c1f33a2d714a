"""Where the mel distance comes from: by frequency band, and by window length.

    python examples/mel_by_band.py CLIPS [--model MODEL] [--codebooks 24 16 10 3]

The mel distance is a sum over seven window lengths of the mean error of log10 magnitudes over mel
bins and frames. The first table splits it by the frequency of the bins, the third by window; the
second says how far off a bin is on average. The fourth says how far off levels are: energies of 40
mel bands, averaged over 93 ms, in dB. The last row is noise in place of other noise of the same
level: a decoder that knows nothing but the spectrum.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import avg_pool1d
from tqdm import tqdm

from tokenizer import load_tokenizer, open_audio
from tokenizer.evaluation.evaluate import as_table
from tokenizer.networks.spectral import mel_filters, stft_magnitude
from tokenizer.training.clips import scan
from tokenizer.training.losses import MEL_BINS, MEL_WINDOWS, log_mel

EDGES_HZ = (0, 1000, 2000, 4000, 8000, 12_000, 16_000, 30_000)
FLOOR = 1e-5
LEVEL_WINDOW, LEVEL_BANDS, LEVEL_FRAMES = 1024, 40, 16


def bands(sampling_rate: int, window: int, bins: int) -> np.ndarray:
    """The band that the centre of each mel bin lies in; -1 for filters between two FFT bins."""
    filters = mel_filters(sampling_rate, window, bins, torch.device("cpu"))
    hz = torch.linspace(0, sampling_rate / 2, window // 2 + 1)
    weight = filters.sum(0)
    centre = (hz @ filters / weight.clamp(min=1e-9)).numpy()
    return np.where(weight.numpy() > 0, np.digitize(centre, EDGES_HZ) - 1, -1)


def errors(estimate: np.ndarray, target: np.ndarray, rate: int) -> np.ndarray:
    """Sums of absolute errors and numbers of bins, over all bins: ``[scales, bands, 2]``."""
    found = np.zeros((len(MEL_WINDOWS), len(EDGES_HZ), 2))
    pair = [torch.from_numpy(np.ascontiguousarray(x)) for x in (estimate, target)]
    for i, (window, bins) in enumerate(zip(MEL_WINDOWS, MEL_BINS, strict=True)):
        got, wanted = (log_mel(x, rate, window, bins, FLOOR).numpy() for x in pair)
        error = np.abs(got - wanted).mean(axis=(0, 1))
        for band, value in zip(bands(rate, window, bins), error, strict=True):
            found[i, band] += value / bins, 1 / bins
    return found


def level_errors(estimate: np.ndarray, target: np.ndarray, rate: int) -> np.ndarray:
    """Mean absolute error of the levels in each band, in dB: ``[bands]``; NaN where none is."""
    filters = mel_filters(rate, LEVEL_WINDOW, LEVEL_BANDS, torch.device("cpu"))
    levels = []
    for x in (estimate, target):
        signal = torch.from_numpy(np.ascontiguousarray(x))
        power = stft_magnitude(signal, LEVEL_WINDOW, LEVEL_WINDOW // 4).square()
        energy = power.transpose(-1, -2) @ filters
        frames = min(LEVEL_FRAMES, energy.shape[-2])
        averaged = avg_pool1d(energy.transpose(-1, -2), frames, max(frames // 2, 1))
        levels.append(10 * averaged.clamp(min=FLOOR**2).log10())
    error = (levels[0] - levels[1]).abs().mean((0, 2)).numpy()
    places = bands(rate, LEVEL_WINDOW, LEVEL_BANDS)
    each = [error[places == i] for i in range(len(EDGES_HZ))]
    return np.array([e.mean() if len(e) else np.nan for e in each])


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description="Where the mel distance comes from.")
    parser.add_argument("audio", help="folder of clips")
    parser.add_argument("--model", help="tokenizer; default: the bundled one")
    parser.add_argument("--codebooks", type=int, nargs="+", default=[24, 16, 10, 3])
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    rate = tokenizer.sampling_rate
    totals: dict[str, list[np.ndarray]] = {}
    levels: dict[str, list[np.ndarray]] = {}
    for clip in tqdm(scan(options.audio), unit="clip"):
        audio = {"array": open_audio(clip.audio, target_rate=rate).read(), "sampling_rate": rate}
        made = {"latents": tokenizer.decode_latents(tokenizer.encode_latents(audio))}
        for n in options.codebooks:
            row = tokenizer.encode_codes(audio, n_codebooks=n)
            made[f"{n} codebooks"] = tokenizer.decode_codes(row)
        for name, decoded in made.items():
            totals.setdefault(name, []).append(errors(decoded, audio["array"], rate))
            levels.setdefault(name, []).append(level_errors(decoded, audio["array"], rate))
    noises = np.random.default_rng(0).normal(0, 0.1, (2, 1, 10 * rate)).astype(np.float32)
    totals["noise for noise"] = [errors(noises[0], noises[1], rate)]
    levels["noise for noise"] = [level_errors(noises[0], noises[1], rate)]
    top = rate / 2000
    names = [
        f"{low / 1000:g} to {min(high / 1000, top):g} kHz"
        for low, high in pairwise(EDGES_HZ)
        if low / 1000 < top
    ]
    by_band, by_bin, by_window, by_level = [], [], [], []
    for name, each in totals.items():
        mean = np.mean(each, axis=0)
        share, weight = mean[..., 0], mean[:, : len(names), 1].sum(0)
        band = share[:, : len(names)].sum(0)
        by_band.append([name, *(f"{x:.3f}" for x in band), f"{share.sum():.3f}"])
        by_bin.append([name, *(f"{x:.3f}" for x in band / np.maximum(weight, 1e-9))])
        by_window.append([name, *(f"{x:.3f}" for x in share.sum(1))])
        by_level.append([name, *(f"{x:.2f}" for x in np.mean(levels[name], axis=0)[: len(names)])])
    print("Mel distance, by band\n")
    print(as_table(by_band, ["", *names, "all"]))
    print("\nMean error of a bin (log10)\n")
    print(as_table(by_bin, ["", *names]))
    print("\nMel distance, by window length in samples\n")
    print(as_table(by_window, ["", *map(str, MEL_WINDOWS)]))
    print("\nMean error of levels (dB)\n")
    print(as_table(by_level, ["", *names]))


if __name__ == "__main__":
    main()
