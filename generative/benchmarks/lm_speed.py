"""Sampling speed of `CodecLM` beside `transformers`' MusicGen decoder of equal size, in one run.

    python -m generative.benchmarks.lm_speed [--frames 500] [--codebooks 3] [--device cpu]

Weights are random, as speed does not depend on them. Both have the same width, depth, heads and
matrix products per step (MusicGen's cross-attention is not used), the delay pattern, and draw from
the 250 likeliest codes. Each figure is the best of several repetitions.
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch

from generative.cli.options import add, add_device
from generative.language_model.codec_lm import CodecLM, CodecLMConfig
from generative.protocol import CodeSampling

CODEBOOK_SIZE, TOP_K = 1024, 250


def ours(options: argparse.Namespace, pattern: str) -> CodecLM:
    """Our model."""
    torch.manual_seed(0)
    sizes = (CODEBOOK_SIZE,) * options.codebooks
    shape = {"width": options.width, "depth": options.depth, "heads": options.heads}
    return (
        CodecLM(CodecLMConfig(sizes, pattern, labels=["music"], **shape)).eval().to(options.device)
    )


def musicgen(options: argparse.Namespace) -> Any:
    """The decoder of MusicGen, in our size."""
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    torch.manual_seed(0)
    config = MusicgenDecoderConfig(
        vocab_size=CODEBOOK_SIZE,
        num_codebooks=options.codebooks,
        hidden_size=options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=options.heads,
        ffn_dim=4 * options.width,
        max_position_embeddings=4096,
        pad_token_id=CODEBOOK_SIZE,
        bos_token_id=CODEBOOK_SIZE,
    )
    model: Any = MusicgenForCausalLM(config)
    return model.eval().to(options.device)


def used_parameters(model: torch.nn.Module) -> float:
    """Millions of parameters of the layers that take part in a step."""
    layers = {name: p for name, p in model.named_parameters() if ".layers." in name}
    return sum(p.numel() for name, p in layers.items() if "encoder_attn" not in name) / 1e6


def run_ours(
    model: CodecLM, frames: int, batch: int = 1, guidance: float = 1.0, use_cache: bool = True
) -> Callable[[], object]:
    """A call that generates ``frames`` frames of each item."""
    device = next(model.parameters()).device
    conditions = {"label": torch.zeros(batch, dtype=torch.int64, device=device)}
    how = {"sampling": CodeSampling(top_k=TOP_K, use_cache=use_cache), "guidance_scale": guidance}
    return lambda: model.sample(conditions, frames, torch.Generator().manual_seed(0), **how)


def run_musicgen(
    model: Any, frames: int, codebooks: int, batch: int = 1, guidance: float | None = None
) -> Callable[[], object]:
    """The same of MusicGen: its steps are the frames and the delay."""
    start = torch.full((batch * codebooks, 1), CODEBOOK_SIZE, device=model.device)
    return lambda: model.generate(
        start,
        max_new_tokens=frames + codebooks,
        do_sample=True,
        top_k=TOP_K,
        guidance_scale=guidance,
        pad_token_id=CODEBOOK_SIZE,
        decoder_start_token_id=CODEBOOK_SIZE,
        num_return_sequences=1,
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Sampling speed of codec language models.")
    for name, default, text in (
        ("frames", 500, "frames to generate"),
        ("codebooks", 3, "codebooks"),
        ("width", 384, "width of the hidden states"),
        ("depth", 6, "layers"),
        ("heads", 6, "attention heads"),
        ("threads", 2, "CPU threads"),
        ("repetitions", 3, "repetitions, of which the fastest counts"),
    ):
        add(parser, f"--{name}", None, default, text)
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames, short = options.frames, max(options.frames // 10, 4)
    model, flat, peer = ours(options, "delay"), ours(options, "flatten"), musicgen(options)
    entries: list[tuple[str, int, int, Callable[[], object]]] = [
        ("delay", 1, frames, run_ours(model, frames)),
        ("delay, guidance", 1, frames, run_ours(model, frames, guidance=3.0)),
        ("delay, 8 clips", 8, frames, run_ours(model, frames, batch=8)),
        ("delay, no cache", 1, short, run_ours(model, short, use_cache=False)),
        ("flatten", 1, short, run_ours(flat, short)),
        ("MusicGen", 1, frames, run_musicgen(peer, frames, options.codebooks)),
        ("MusicGen, guidance", 1, frames, run_musicgen(peer, frames, options.codebooks, 1, 3.0)),
        ("MusicGen, 8 clips", 8, frames, run_musicgen(peer, frames, options.codebooks, 8)),
    ]
    print(
        f"{options.codebooks} codebooks, layers of {used_parameters(model):.1f} M parameters"
        f" (MusicGen: {used_parameters(peer):.1f} M), {options.threads} CPU threads,"
        f" {options.device},"
        f" torch {torch.__version__}"
    )
    print("| | frames | frames a second | CPU ms a frame |\n|---|---|---|---|")
    for name, batch, count, call in entries:
        start = time.process_time()
        seconds = min(timeit.repeat(call, number=1, repeat=options.repetitions))
        busy = (time.process_time() - start) / options.repetitions
        total = batch * count
        print(f"| {name} | {count} | {total / seconds:.0f} | {1000 * busy / total:.1f} |")


if __name__ == "__main__":
    main()
