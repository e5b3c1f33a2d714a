"""Residual quantization beside other libraries: vectors a second, and what fitting takes.

    python -m tokenizer.benchmarks.vectors [--parts encode fit kmeans] [--threads 2]

All quantizers have as many stages and entries, and latents of as many dimensions (the DAC's, whose
entries have 8, does less). The floor is one matrix product of the vectors with each codebook.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.benchmarks.machine import describe, matmul_rate
from tokenizer.benchmarks.quantizers import distortion_db, faiss_residual, mixture, split
from tokenizer.evaluation.coding import best_of, timed
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
        theirs = faiss_residual(dim, codebooks, size)
        theirs.train_type = theirs.Train_default
        theirs.cp.niter, theirs.cp.min_points_per_centroid = 1, 1
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
    ours, seconds = timed(lambda: fitted(train, codebooks, size, max_points=len(train)))
    error = distortion_db(test, ours.decode(ours.encode(test)))
    lines = [{"fit": "ours", "seconds": seconds, "distortion_db": error}]
    if peers:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        theirs = faiss_residual(train.shape[1], codebooks, size)
        _, seconds = timed(lambda: theirs.train(train.numpy()))
        decoded = torch.from_numpy(theirs.decode(theirs.compute_codes(test.numpy())))
        error = distortion_db(test, decoded)
        lines.append({"fit": "faiss.ResidualQuantizer", "seconds": seconds, "distortion_db": error})
    return lines


def kmeans_lines(train: Tensor, size: int) -> list[dict[str, Any]]:
    """One codebook: ours and `faiss.Kmeans`' three seeds."""
    import faiss

    def line(name: str, seconds: float, centroids: Tensor) -> dict[str, Any]:
        error = float((train - centroids[nearest(train, centroids)]).square().sum(1).mean())
        return {"k-means": name, "seconds": seconds, "distortion": error}

    generator = torch.Generator().manual_seed(0)
    centroids, seconds = timed(lambda: kmeans(train, size, generator=generator, iterations=12))
    lines = [line("ours", seconds, centroids)]
    for seed in range(3):
        theirs = faiss.Kmeans(train.shape[1], size, seed=seed)
        _, seconds = timed(lambda theirs=theirs: theirs.train(train.numpy()))
        centroids = torch.from_numpy(theirs.centroids)
        lines.append(line(f"faiss.Kmeans, seed {seed}", seconds, centroids))
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

    def add(part: str, lines: list[dict[str, Any]]) -> None:
        results[part] = lines
        print(table(lines) + "\n", flush=True)

    if "encode" in parts:
        settings = (options.dim, options.device, options.vectors)
        add("encode", encode_lines(options.threads, *sizes, *settings))
    if {"fit", "kmeans"} & set(parts):
        train, test = split(options.latents, options.train, 20_000, options.dim)
        if "kmeans" in parts:
            add("kmeans", kmeans_lines(train, options.codebook_size))
        if "fit" in parts:
            add("fit", fit_lines(train, test, *sizes, not options.no_peers))
    write_figures(options.json, results)


if __name__ == "__main__":
    main()
