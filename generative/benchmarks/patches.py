"""What tokens of several latent frames cost a diffusion model, and what it learns in the same time.

    python -m generative.benchmarks.patches TOKENS [--patch-frames 1 2 4 8] [--minutes 10]

For every size of a patch: multiply-adds per second of audio of one evaluation, and the loss of
held-out clips after equal CPU time of training. It is the mean squared error of the velocity in
latents of deviation 1, so models of different patches can be compared. With ``--minutes 0`` nothing
is trained, and there is no loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from generative.benchmarks.cost_table import Cost, cost_parser, measure, open_tokenizer, print_table
from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.protocol import Batch
from generative.runs.prepared_data import load_prepared
from tokenizer import LatentTokenizer

# Each held-out clip is judged at so many noise levels.
NOISE_LEVELS = 8


@torch.no_grad()
def held_out_loss(model: LatentDiffusion, batches: Iterator[Batch]) -> float:
    """Mean over frames and noise levels, which are the same for every model."""
    total, frames = 0.0, 0
    for index, batch in enumerate(batches):
        count = int(batch["mask"].sum())
        for level in range(NOISE_LEVELS):
            generator = torch.Generator().manual_seed(index * NOISE_LEVELS + level)
            total += float(model.training_loss(batch, generator)["loss"]) * count
            frames += count
    return total / frames


def costs(options: argparse.Namespace, tokenizer: LatentTokenizer) -> Iterator[tuple[int, Cost]]:
    """Trains and measures each size of patches."""
    data, dim = load_prepared(options.data, "latents", options.held_out), tokenizer.coded_dim
    sizes = {"width": options.width, "depth": options.depth, "heads": options.heads}
    for patch_frames in options.patch_frames:
        torch.manual_seed(0)
        model = LatentDiffusion(dim, data.labels, patch_frames=patch_frames, **sizes).eval()
        model.set_statistics(tokenizer.latents_mean[:dim], tokenizer.latents_std[:dim])
        yield (
            patch_frames,
            measure(model, data, tokenizer, options, held_out_loss, latent_dim=dim),
        )


def main() -> None:
    """Measures and prints the table, row by row."""
    parser = cost_parser("Cost and quality of patches of latent frames.", "latents", 8e-4)
    text = "latent frames of a token, one row each; default: 1 2 4 8"
    parser.add_argument("--patch-frames", type=int, nargs="+", default=[1, 2, 4, 8], help=text)
    options = parser.parse_args()
    tokenizer = open_tokenizer(options)
    learned = f"{tokenizer.coded_dim} latents at {tokenizer.frame_rate:g} frames a second"
    print_table(options, learned, "patch frames", "loss", costs(options, tokenizer))


if __name__ == "__main__":
    main()
