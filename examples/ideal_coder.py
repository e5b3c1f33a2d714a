"""What a rate allows: an ideal coder of Gaussian MDCT coefficients, by SI-SDR and mel distance.

    python examples/ideal_coder.py CLIPS [--kbit 3 10 16 24 48]

It is told for free how loud each coefficient is expected to be (its power, averaged over three
frames and five bins), codes it at the rate-distortion bound (reverse water-filling, Cover and
Thomas, "Elements of Information Theory", 10.3.3), and puts noise where nothing came through. No
coder of single frames has so little to spend or such codes; what it lacks is what networks can
learn: the structure of audio beyond its levels. "A frame" spends the same bits in each frame, as
codes do; "a clip" wherever they help most. "Companding" c makes distortion follow the c-th power
of the levels in place of being the same everywhere.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad
from tqdm import tqdm

from tokenizer import open_audio
from tokenizer.evaluation.evaluate import as_table
from tokenizer.evaluation.metrics import mel_distance, si_sdr
from tokenizer.networks.spectral import imdct, mdct
from tokenizer.training.clips import scan

RATE, HOP = 44_100, 441
# Power of the noise that fills what is not coded, over the power that is missing.
FILL = 0.3


def levels(c: Tensor) -> Tensor:
    """Power of each coefficient ``[T, M]``, averaged over three frames and five bins."""
    padded = pad(c.square()[None, None], (2, 2, 1, 1), mode="replicate")
    return avg_pool2d(padded, (3, 5), 1)[0, 0] + 1e-9


def water_level(variance: Tensor, bits: float) -> Tensor:
    """The distortion ``[rows, 1]`` at which ``variance [rows, n]`` costs so many bits a row."""
    low, high = torch.full((2, len(variance), 1), -40.0)
    high = high + 60
    logarithm = variance.log()
    for _ in range(40):
        middle = (low + high) / 2
        spent = (logarithm - middle).clamp(min=0).sum(1, keepdim=True) / (2 * math.log(2))
        too_dear = spent > bits
        low, high = torch.where(too_dear, middle, low), torch.where(too_dear, high, middle)
    return high.exp()


def code(audio: Tensor, kbit: float, *, by_frame: bool, companding: float, seed: int) -> Tensor:
    """What comes back of ``audio [N]`` at a rate in kbit/s."""
    gain = audio.square().mean().sqrt() + 1e-5
    c = mdct(audio / gain, HOP)
    power = levels(c)
    weight = power**companding
    bits = kbit * 1000 * HOP / RATE
    companded = power / weight
    if by_frame:
        level = water_level(companded, bits)
    else:
        level = water_level(companded.reshape(1, -1), bits * len(c))
    distortion = torch.minimum(level * weight, power)
    # The forward test channel: noise, and as much less signal, keep the power below the original's.
    kept = 1 - distortion / power
    generator = torch.Generator().manual_seed(seed)
    noise, fill = (torch.randn(c.shape, generator=generator) for _ in range(2))
    coded = kept * c + (distortion * kept).sqrt() * noise + (FILL * distortion).sqrt() * fill
    return imdct(coded)[: len(audio)] * gain


def main() -> None:
    """Codes all clips at all rates and prints a table."""
    parser = argparse.ArgumentParser(description="What a rate allows.")
    parser.add_argument("audio", help="folder of clips")
    parser.add_argument("--kbit", type=float, nargs="+", default=[3, 10, 16, 24, 48])
    options = parser.parse_args()
    conditions = {
        "a clip": {"by_frame": False, "companding": 0.0},
        "a frame": {"by_frame": True, "companding": 0.0},
        "a frame, companding 0.5": {"by_frame": True, "companding": 0.5},
    }
    found: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for index, clip in enumerate(tqdm(scan(options.audio), unit="clip")):
        audio = torch.from_numpy(open_audio(clip.audio, target_rate=RATE).read())[:1]
        for kbit in options.kbit:
            for name, how in conditions.items():
                decoded = code(audio[0], kbit, seed=index, **how)[None]
                scores = (float(si_sdr(decoded, audio)), mel_distance(decoded, audio, RATE))
                found.setdefault((kbit, name), []).append(scores)
    rows = []
    for kbit in options.kbit:
        means = [np.mean(found[kbit, name], axis=0) for name in conditions]
        rows.append([f"{kbit:g} kbit/s", *(f"{sdr:.2f} / {mel:.3f}" for sdr, mel in means)])
    print(as_table(rows, ["", *conditions]))


if __name__ == "__main__":
    main()
