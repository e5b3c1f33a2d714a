"""Stages 1 and 3 on tiny models; runs by itself in several processes: ``tiny_training.py AUDIO OUT
CROPS``, crops of each step and process."""

from __future__ import annotations

import sys
from pathlib import Path

from models import make_autoencoder, make_tokenizer

from tokenizer.training import CropTrainingConfig, reconstruction
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig, train_autoencoder
from tokenizer.training.clips import scan
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder


def train_stages(audio: Path, out: Path, batch_size: int) -> None:
    """Both, into folders of their own."""
    clips = scan(audio)
    loop = CropTrainingConfig(
        steps=6,
        batch_size=batch_size,
        crop_seconds=0.25,
        learning_rate=1e-3,
        warmup_steps=2,
        log_every=3,
        validate_every=100,
        num_workers=0,
    )
    shared = {
        "loop": loop,
        # From more frames gradients are less often near zero, where only rounding decides.
        "losses": ReconstructionConfig(mel_overlap=4),
        "augmentation": Augmentation(),
        "progress": False,
    }
    autoencoder = make_autoencoder()
    train_autoencoder(autoencoder, clips, out / "stage1", **shared)
    tokenizer = make_tokenizer()
    finetune_decoder(tokenizer, clips, out / "stage3", finetune=FinetuneConfig(), **shared)


if __name__ == "__main__":
    # As tests/conftest.py has it.
    reconstruction.HELD_OUT_CROPS = 2
    train_stages(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
