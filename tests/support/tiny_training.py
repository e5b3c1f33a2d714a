"""Stages 1 and 3 on tiny models; runs by itself in several processes: ``tiny_training.py AUDIO OUT
CROPS``, crops of each step and process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from short_runs import LOOP, short_finetune, short_train

from tokenizer.training import reconstruction
from tokenizer.training.autoencoder import ReconstructionConfig


def train_stages(audio: Path, out: Path, batch_size: int) -> None:
    """Both, into folders of their own."""
    loop = replace(LOOP, steps=6, batch_size=batch_size, warmup_steps=2)
    # From more frames gradients are less often near zero, where only rounding decides.
    losses = ReconstructionConfig(mel_overlap=4)
    short_train(audio, out / "stage1", loop=loop, losses=losses)
    short_finetune(audio, out / "stage3", loop=loop, losses=losses)


if __name__ == "__main__":
    # As tests/conftest.py has it.
    reconstruction.HELD_OUT_CROPS = 2
    train_stages(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
