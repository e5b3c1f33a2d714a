"""Residual quantization beside other libraries: vectors a second, and what fitting takes.

    python -m tokenizer.benchmarks.vectors [--parts encode fit kmeans] [--threads 2]

All quantizers have as many stages and entries, and latents of as many dimensions (the DAC's, whose
entries have 8, does less). The floor is one matrix product of the vectors with each codebook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.benchmarks.machine import best_of, describe, matmul_rate
from tokenizer.benchmarks.quantizers import mixture, split
from tokenizer.quantizers import ResidualVectorQuantizer, TensorSource
from tokenizer.quantizers.kmeans import kmeans, nearest

PARTS = ("encode", "fit", "kmeans")
Encode = Callable[[Tensor], Any]


def fitted(x: Tensor, codebooks: int, size: int, **options: Any) -> ResidualVectorQuantizer:
    """Ours, fitted quickly: speed does not depend on how well."""
    quantizer = ResidualVectorQuantizer(x.shape[1], codebooks, size, **options)
    return quantizer.fit(TensorSource(x), generator=torch.Generator().manual_seed(0))


def contenders(x: Tensor, codebooks: int, size: int, device: str) -> dict[str, Encode]:
    """Encoders of vectors ``[M, D]``, ours first; libraries that are missing are left out."""
    import importlib.util

    quantizer = fitted(x[: 8 * size].cpu(), codebooks, size, iterations=2).to(device)
    encoders: dict[str, Encode] = {
        f"ours, {'greedy' if w == 1 else f'beam {w}'}": lambda v, w=w: quantizer.encode(
            v, beam_width=w
        )
        for w in (1, 4)
    }
    dim = x.shape[1]
    if importlib.util.find_spec("vector_quantize_pytorch"):
        from vector_quantize_pytorch import ResidualVQ

        library = ResidualVQ(dim=dim, num_quantizers=codebooks, codebook_size=size).eval()
        library = library.to(device)
        encoders["vector-quantize-pytorch"] = lambda v: library(v[None])[1]
    from transformers import DacConfig, EncodecConfig
    from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    config = EncodecConfig(codebook_size=size, codebook_dim=dim)
    encodec: Any = EncodecResidualVectorQuantizer(config)
    encodec = encodec.eval().to(device)
    layers = encodec.layers
    while len(layers) < codebooks:
        layers.extend(layers[: codebooks - len(layers)])
    encodec.num_quantizers = codebooks
    encodec.get_num_quantizers_for_bandwidth = lambda *_: codebooks
    encoders["transformers, EnCodec"] = lambda v: encodec.encode(v.T[None], None)
    settings: Any = DacConfig(n_codebooks=codebooks, codebook_size=size)
    settings.hidden_size = dim
    dac: Any = DacResidualVectorQuantizer(settings).eval().to(device)
    encoders["transformers, DAC (8-d)"] = lambda v: dac(v.T[None], codebooks)
    if device == "cpu" and importlib.util.find_spec("faiss"):
        import faiss

        bits = size.bit_length() - 1
        theirs: Any = faiss.ResidualQuantizer(dim, codebooks, bits)
        theirs.train_type = faiss.ResidualQuantizer.Train_default
        theirs.cp.niter, theirs.cp.min_points_per_centroid = 1, 1
        theirs.max_beam_size = 1
        theirs.train(x[: 2 * size].cpu().numpy())
        encoders["faiss, greedy"] = lambda v: theirs.compute_codes(v.cpu().numpy())
    return encoders


def encode_lines(
    threads: int, codebooks: int, size: int, dim: int, device: str, count: int
) -> list[dict[str, Any]]:
    """Vectors a second of each contender, in turns."""
    torch.set_num_threads(threads)
    x = mixture(max(count, 8 * size), dim, 1).to(device)
    calls = contenders(x, codebooks, size, device)
    vectors = x[:count]
    with torch.inference_mode():
        times = best_of([lambda c=c: c(vectors) for c in calls.values()], 3, device)
    floor = codebooks * size * dim / matmul_rate(device)
    return [
        {
            "quantizer": name,
            "threads": threads,
            "vectors_per_second": count / seconds,
            "over_floor": seconds / count / floor,
        }
        for name, seconds in zip(calls, times, strict=True)
    ]


def fit_lines(
    train: Tensor, test: Tensor, codebooks: int, size: int, peers: bool
) -> list[dict[str, Any]]:
    """Seconds to fit, and the error on held-out vectors in dB."""

    def error(decode: Tensor) -> float:
        deviation = (test - test.mean(0)).square().sum()
        return 10 * math.log10(float((test - decode).square().sum() / deviation))

    start = time.perf_counter()
    quantizer = fitted(train, codebooks, size, max_points=len(train))
    lines = [{"fit": "ours", "seconds": time.perf_counter() - start}]
    lines[0]["distortion_db"] = error(quantizer.decode(quantizer.encode(test)))
    if not peers:
        return lines
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    theirs: Any = faiss.ResidualQuantizer(train.shape[1], codebooks, size.bit_length() - 1)
    theirs.max_beam_size = 1
    start = time.perf_counter()
    theirs.train(train.numpy())
    seconds = time.perf_counter() - start
    decoded = torch.from_numpy(theirs.decode(theirs.compute_codes(test.numpy())))
    lines.append(
        {
            "fit": "faiss.ResidualQuantizer",
            "seconds": seconds,
            "distortion_db": error(decoded),
        }
    )
    return lines


def kmeans_lines(train: Tensor, size: int) -> list[dict[str, Any]]:
    """One codebook: ours and `faiss.Kmeans`' three seeds."""
    import faiss

    def error(centroids: Tensor) -> float:
        return float((train - centroids[nearest(train, centroids)]).square().sum(1).mean())

    start = time.perf_counter()
    centroids = kmeans(train, size, generator=torch.Generator().manual_seed(0), iterations=12)
    lines = [
        {"k-means": "ours", "seconds": time.perf_counter() - start, "distortion": error(centroids)}
    ]
    for seed in range(3):
        theirs = faiss.Kmeans(train.shape[1], size, seed=seed)
        start = time.perf_counter()
        theirs.train(train.numpy())
        seconds = time.perf_counter() - start
        lines.append(
            {
                "k-means": f"faiss.Kmeans, seed {seed}",
                "seconds": seconds,
                "distortion": error(torch.from_numpy(theirs.centroids)),
            }
        )
    return lines


def main() -> None:
    """Measures and prints the tables."""
    parser = benchmark_parser(__doc__, "--threads", "--device", "--latents", "--json")
    parser.add_argument("--codebooks", type=int, default=16, help="number of codebooks")
    parser.add_argument("--codebook-size", type=int, default=1024, help="entries of each")
    parser.add_argument("--dim", type=int, default=64, help="dimensions of the mixture")
    parser.add_argument("--vectors", type=int, default=8192, help="encoded in one call")
    parser.add_argument("--train", type=int, default=1_000_000, help="vectors fitted to")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--no-peers", action="store_true", help="fit ours only")
    options = parser.parse_args()
    parts = options.parts
    torch.set_num_threads(options.threads)
    sizes = (options.codebooks, options.codebook_size)
    print(f"{options.threads} threads, {describe(options.device)}\n")
    results: dict[str, list[dict[str, Any]]] = {}
    if "encode" in parts:
        results["encode"] = encode_lines(
            options.threads, *sizes, options.dim, options.device, options.vectors
        )
        print(table(results["encode"]), flush=True)
    if {"fit", "kmeans"} & set(parts):
        train, test = split(options.latents, options.train, 20_000, options.dim)
        if "kmeans" in parts:
            results["kmeans"] = kmeans_lines(train, options.codebook_size)
            print("\n" + table(results["kmeans"]), flush=True)
        if "fit" in parts:
            results["fit"] = fit_lines(train, test, *sizes, not options.no_peers)
            print("\n" + table(results["fit"]), flush=True)
    write_figures(options.json, results)


if __name__ == "__main__":
    main()
