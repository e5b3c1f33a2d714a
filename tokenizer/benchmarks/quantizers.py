"""Quantizers on the same latents at equal bits, beside the libraries they follow, in one run.

    python -m tokenizer.benchmarks.quantizers [--latents latents.npy] [--codebooks 4]

Each is fitted to one part of the latents and measured on another: distortion is the squared error
over the deviation from the mean. `latok fit` leaves such latents beside the model it makes; without
any, a mixture of Gaussians is drawn, in which quantizers differ less than on audio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.benchmarks.command import benchmark_parser
from tokenizer.evaluation.comparison.specs import parse_spec
from tokenizer.evaluation.evaluate import as_table
from tokenizer.quantizers import MemmapSource, TensorSource

OURS = (
    "rvq",
    "rvq:refinements=4",
    "rvq:beam_width=8",
    "rvq:beam_width=8,refinements=4",
    "rq-faiss",
    "rq-faiss:beam_width=5",
    "pq",
    "opq",
    "lsq:iterations=5,max_points=10000",
    "fsq",
    "rfsq",
    "qinco:steps=1000",
)
Codec = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], float]


def mixture(rows: int, dim: int, seed: int) -> Tensor:
    """Frames of a mixture of 64 Gaussians, each with an uneven covariance of its own."""
    fixed = torch.Generator().manual_seed(0)
    centres = torch.randn(64, dim, generator=fixed)
    factors = torch.randn(64, dim, dim, generator=fixed) * torch.logspace(0, -1.5, dim) / dim**0.5
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(64, (rows,), generator=g)
    noise = torch.randn(rows, dim, 1, generator=g)
    return centres[which] + torch.cat(
        [
            (factors[w] @ n)[..., 0]
            for w, n in zip(which.split(4096), noise.split(4096), strict=True)
        ]
    )


def split(path: Path | None, train: int, test: int, dim: int) -> tuple[Tensor, Tensor]:
    """Frames to fit to and frames to measure on; of a file, its last tenth is for the latter."""
    if path is None:
        return mixture(train, dim, 1), mixture(test, dim, 2)
    source = MemmapSource(path)
    border = len(source) * 9 // 10

    def spread(start: int, stop: int, count: int) -> Tensor:
        rows = np.linspace(start, stop - 1, min(count, stop - start)).astype(int)
        return torch.cat([source.rows(row, row + 1) for row in rows])

    return spread(0, border, train), spread(border, len(source), test)


def ours(text: str, train: Tensor, codebooks: int, size: int) -> Codec:
    """One of our quantizers, fitted."""
    quantizer = parse_spec(text).build(
        train.shape[1], num_codebooks=codebooks, codebook_size=size, levels=_levels(size)
    )
    quantizer.fit(TensorSource(train), generator=torch.Generator().manual_seed(0))
    bits = sum(math.log2(s) for s in quantizer.codebook_sizes)
    return quantizer.encode, quantizer.decode, bits


def _levels(size: int) -> tuple[int, ...]:
    """Levels of 2 and 4 whose product is the size of a codebook."""
    bits = size.bit_length() - 1
    return (4,) * (bits // 2) + (2,) * (bits % 2)


def faiss_codec(kind: str, train: Tensor, codebooks: int, size: int) -> Codec:
    """A quantizer of faiss, trained and run by it."""
    import faiss

    mean = train.mean(0)
    bits = size.bit_length() - 1
    dim = train.shape[1]
    quantizer: Any = (
        faiss.ProductQuantizer(dim, codebooks, bits)
        if kind == "pq"
        else faiss.ResidualQuantizer(dim, codebooks, bits)
    )
    if kind == "rq":
        quantizer.max_beam_size = 1
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train((train - mean).numpy())
    return (
        lambda x: quantizer.compute_codes((x - mean).numpy()),
        lambda codes: torch.from_numpy(quantizer.decode(codes)) + mean,
        float(codebooks * bits),
    )


def library_codec(train: Tensor, codebooks: int, size: int) -> Codec:
    """The residual quantizer of `vector-quantize-pytorch`: k-means, then two passes of its EMA."""
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(0)
    quantizer = ResidualVQ(
        dim=train.shape[1], num_quantizers=codebooks, codebook_size=size, kmeans_init=True
    )
    with torch.no_grad():
        for _ in range(2):
            for batch in train.split(8192):
                quantizer(batch[None])
    quantizer.eval()

    def encode(x: Tensor) -> Tensor:
        return quantizer(x[None])[1][0]

    def decode(codes: Tensor) -> Tensor:
        return quantizer.get_output_from_indices(codes[None])[0]

    return torch.no_grad()(encode), torch.no_grad()(decode), codebooks * math.log2(size)


def measure(name: str, fit: Callable[[], Codec], test: Tensor) -> list[str]:
    """A row of the table."""
    start = time.process_time()
    encode, decode, bits = fit()
    fitted = time.process_time() - start
    start = time.process_time()
    codes = encode(test)
    encoded = time.process_time() - start
    error = (test - decode(codes)).square().sum() / (test - test.mean(0)).square().sum()
    speed = len(test) / max(encoded, 1e-9)
    distortion = 10 * math.log10(float(error))
    return [name, f"{bits:.0f}", f"{distortion:.2f}", f"{fitted:.1f}", f"{speed:,.0f}"]


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__, "--latents")
    parser.add_argument("--dim", type=int, default=48, help="dimensions of the mixture")
    parser.add_argument("--codebooks", type=int, default=4, help="number of codebooks")
    parser.add_argument("--codebook-size", type=int, default=256, help="entries of each")
    parser.add_argument("--train", type=int, default=40_000, help="frames to fit to")
    parser.add_argument("--test", type=int, default=4_000, help="frames to measure on")
    parser.add_argument("--quantizers", nargs="*", default=list(OURS), help="as for latok compare")
    libraries = ("faiss-pq", "faiss-rq", "vqp")
    parser.add_argument(
        "--libraries", nargs="*", choices=libraries, default=libraries, help="other libraries"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = split(options.latents, options.train, options.test, options.dim)
    sizes = (options.codebooks, options.codebook_size)
    fits: dict[str, Callable[[], Codec]] = {
        text: lambda text=text: ours(text, train, *sizes) for text in options.quantizers
    }
    for name in options.libraries:
        kind = name.partition("-")[2]
        fits[f"{name} (library)"] = (
            (lambda kind=kind: faiss_codec(kind, train, *sizes))
            if kind
            else (lambda: library_codec(train, *sizes))
        )
    print(f"{len(train)} frames to fit to, {len(test)} to measure on, D = {train.shape[1]}")
    rows = []
    for name, fit in fits.items():
        rows.append(measure(name, fit, test))
        print(" | ".join(rows[-1]), flush=True)
    print()
    header = ["quantizer", "bits a frame", "distortion dB", "fit, CPU s", "encoded a CPU s"]
    print(as_table(rows, header))


if __name__ == "__main__":
    main()
