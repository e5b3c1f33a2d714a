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
from dataclasses import dataclass
from pathlib import Path

import torch

from generative.benchmarks.timed_training import train
from generative.cli.options import add, add_tokenizer
from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.evaluation.arithmetic import multiply_adds
from generative.protocol import Batch
from generative.runs.batches import make_collator, training_batches, validation_batches
from generative.runs.prepared_data import load_prepared
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.errors import InputError
from tokenizer.saving import write_json

# Each held-out clip is judged at so many noise levels.
NOISE_LEVELS = 8


@dataclass(frozen=True)
class PatchResult:
    """A row of the table.

    Attributes:
        patch_frames: Latent frames of a token.
        parameters: Number of parameters.
        multiply_adds: Per second of audio, of one evaluation of the model.
        steps: Steps of training.
        loss: Of held-out clips; None without training.
    """

    patch_frames: int
    parameters: int
    multiply_adds: float
    steps: int
    loss: float | None


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


def measure(
    options: argparse.Namespace, tokenizer: LatentTokenizer, patch_frames: int
) -> PatchResult:
    """Trains and measures one size of patches."""
    data = load_prepared(options.data, "latents", options.held_out)
    dim = tokenizer.coded_dim
    config = TrainingConfig(
        steps=1, batch_size=options.batch_size, crop_frames=options.crop_frames, num_workers=0
    )
    settings = {"crop_frames": options.crop_frames, "latent_dim": dim}
    torch.manual_seed(0)
    sizes = {"width": options.width, "depth": options.depth, "heads": options.heads}
    model = LatentDiffusion(dim, data.labels, patch_frames=patch_frames, **sizes).eval()
    model.set_statistics(tokenizer.latents_mean[:dim], tokenizer.latents_std[:dim])
    cost = multiply_adds(model, tokenizer.frame_rate)
    parameters = sum(p.numel() for p in model.parameters())
    if not options.minutes:
        return PatchResult(patch_frames, parameters, cost, 0, None)
    training = training_batches(data, make_collator(data, tokenizer, seed=0, **settings), config)
    steps = train(model, training, 60 * options.minutes, options.learning_rate)
    held_out = make_collator(data, tokenizer, seed=1, **settings)
    held_out = validation_batches(data, held_out, batch_size=options.batch_size)
    return PatchResult(patch_frames, parameters, cost, steps, held_out_loss(model, held_out))


def main() -> None:
    """Measures and prints the table, row by row."""
    parser = argparse.ArgumentParser(description="Cost and quality of patches of latent frames.")
    parser.add_argument("data", type=Path, help="dataset prepared with --latents")
    add_tokenizer(parser, "the bundled one")
    text = "latent frames of a token, one row each; default: 1 2 4 8"
    parser.add_argument("--patch-frames", type=int, nargs="+", default=[1, 2, 4, 8], help=text)
    for name, default, text in (
        ("minutes", 10.0, "CPU minutes of training of each size"),
        ("width", 256, "width of the hidden states"),
        ("depth", 4, "layers"),
        ("heads", 4, "attention heads"),
        ("batch-size", 8, "clips of a step"),
        ("crop-frames", 256, "frames of a clip, at most"),
        ("learning-rate", 8e-4, "largest learning rate"),
        ("held-out", 0.1, "share of the sources to measure on, where there is no split for it"),
        ("threads", 1, "CPU threads"),
    ):
        add(parser, f"--{name}", None, default, text)
    parser.add_argument("--json", type=Path, help="file to write the rows to; default: none")
    options = parser.parse_args()
    if not options.minutes >= 0:
        raise InputError(f"--minutes {options.minutes:g} is negative.")
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.tokenizer)
    print(
        f"{tokenizer.coded_dim} latents at {tokenizer.frame_rate:g} frames a second, width"
        f" {options.width}, {options.depth} layers, {options.minutes:g} CPU minutes of training"
        f" ({options.threads} threads), torch {torch.__version__}"
    )
    print("| frames of a token | parameters | multiply-adds per second of audio | steps | loss |")
    print("|---|---|---|---|---|")
    rows = []
    for patch_frames in options.patch_frames:
        row = measure(options, tokenizer, patch_frames)
        rows.append(vars(row))
        loss = "-" if row.loss is None else f"{row.loss:.3f}"
        print(
            f"| {patch_frames} | {row.parameters / 1e6:.1f} M | {row.multiply_adds / 1e9:.2f} G"
            f" | {row.steps or '-'} | {loss} |",
            flush=True,
        )
        if options.json is not None:
            write_json(options.json, rows)


if __name__ == "__main__":
    main()
