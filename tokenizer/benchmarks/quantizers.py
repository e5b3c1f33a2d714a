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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.benchmarks.command import benchmark_parser, table
from tokenizer.evaluation.comparison.specs import parse_spec
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
    bits = size.bit_length() - 1
    # Of 2 and 4, with the size of a codebook as their product.
    levels = (4,) * (bits // 2) + (2,) * (bits % 2)
    quantizer = parse_spec(text).build(
        train.shape[1], num_codebooks=codebooks, codebook_size=size, levels=levels
    )
    quantizer.fit(TensorSource(train), generator=torch.Generator().manual_seed(0))
    bits_a_frame = sum(math.log2(s) for s in quantizer.codebook_sizes)
    return quantizer.encode, quantizer.decode, bits_a_frame


def faiss_residual(dim: int, codebooks: int, size: int) -> Any:
    """The residual quantizer of faiss, untrained, with greedy search."""
    import faiss

    quantizer = faiss.ResidualQuantizer(dim, codebooks, size.bit_length() - 1)
    quantizer.max_beam_size = 1
    return quantizer


def faiss_codec(kind: str, train: Tensor, codebooks: int, size: int) -> Codec:
    """A quantizer of faiss, trained and run by it."""
    import faiss

    mean, dim, bits = train.mean(0), train.shape[1], size.bit_length() - 1
    quantizer: Any = (
        faiss.ProductQuantizer(dim, codebooks, bits)
        if kind == "pq"
        else faiss_residual(dim, codebooks, size)
    )
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
    return (
        torch.no_grad()(lambda x: quantizer(x[None])[1][0]),
        torch.no_grad()(lambda codes: quantizer.get_output_from_indices(codes[None])[0]),
        codebooks * math.log2(size),
    )


def distortion_db(vectors: Tensor, decoded: Tensor) -> float:
    """Squared error over the deviation from the mean."""
    error = (vectors - decoded).square().sum() / (vectors - vectors.mean(0)).square().sum()
    return 10 * math.log10(float(error))


def measure(name: str, fit: Callable[[], Codec], test: Tensor) -> dict[str, Any]:
    """A line of the table."""
    start = time.process_time()
    encode, decode, bits = fit()
    fitted = time.process_time()
    codes = encode(test)
    encoded = time.process_time() - fitted
    return {
        "quantizer": name,
        "bits_a_frame": f"{bits:.0f}",
        "distortion_dB": distortion_db(test, decode(codes)),
        "fit_CPU_s": fitted - start,
        "encoded_a_CPU_s": len(test) / max(encoded, 1e-9),
    }


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
        text: partial(ours, text, train, *sizes) for text in options.quantizers
    }
    for name in options.libraries:
        kind = name.partition("-")[2]
        codec = partial(faiss_codec, kind) if kind else library_codec
        fits[f"{name} (library)"] = partial(codec, train, *sizes)
    print(f"{len(train)} frames to fit to, {len(test)} to measure on, D = {train.shape[1]}")
    lines = []
    for name, fit in fits.items():
        lines.append(measure(name, fit, test))
        print(table(lines[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(lines))


if __name__ == "__main__":
    main()
