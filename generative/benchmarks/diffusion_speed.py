"""How fast latent diffusion makes audio on this machine, decoding included.

    python -m generative.benchmarks.diffusion_speed [--seconds 10] [--steps 25] [--threads 2]

The model has the default size and random weights, on which its speed does not depend.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from generative.cli.options import add
from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.protocol import DiffusionSampling
from generative.runs.generation import generate, make_request
from generative.runs.loading import load_run
from tokenizer import load_tokenizer


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Speed of latent diffusion.")
    parser.add_argument("--run", help="a trained run; default: a new model of the default size")
    for name, default, text in (
        ("seconds", 10.0, "length in s"),
        ("steps", 25, "evaluations"),
        ("guidance", 2.0, "1 for none"),
        ("threads", 2, "CPU threads"),
        ("repetitions", 3, "repetitions"),
    ):
        add(parser, f"--{name}", None, default, text)
    add(parser, "--solver", None, "euler", "integrator", choices=("euler", "dpm++"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.run:
        model, tokenizer, _ = load_run(options.run)
    else:
        tokenizer = load_tokenizer()
        model = LatentDiffusion(tokenizer.latent_dim, ("speech", "music", "sound")).eval()
        model.set_statistics(tokenizer.latents_mean, tokenizer.latents_std)
    request = make_request(
        tokenizer,
        options.seconds,
        labels=[model.labels[0] if model.labels else None],
        guidance_scale=options.guidance,
        diffusion=DiffusionSampling(options.steps, options.solver),
    )
    times, clips = [], []
    for _ in range(options.repetitions):
        start = time.perf_counter()
        clips.append(next(generate(model, tokenizer, request, seed=0)).audio)
        times.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in model.parameters())
    same = all(np.array_equal(clips[0], clip) for clip in clips)
    print(
        f"{parameters / 1e6:.1f} M parameters, {options.seconds:g} s of audio at"
        f" {tokenizer.sampling_rate} Hz, {options.steps} steps ({options.solver}), guidance"
        f" {options.guidance:g}, {options.threads} threads, torch {torch.__version__}"
    )
    print(f"seconds: {', '.join(f'{t:.2f}' for t in times)}; best {min(times):.2f}")
    print(f"the same seed gave the same audio: {same}")


if __name__ == "__main__":
    main()
