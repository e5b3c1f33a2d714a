"""Short training runs of tiny models, their logs, and a way to interrupt them."""

import json
from pathlib import Path
from typing import Any

from models import make_autoencoder, make_tokenizer

from tokenizer import LatentTokenizer
from tokenizer.autoencoders import Autoencoder
from tokenizer.training import CropTrainingConfig, Trainer
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig, train_autoencoder
from tokenizer.training.clips import scan
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder

LOOP = CropTrainingConfig(
    steps=12,
    batch_size=2,
    crop_seconds=0.25,
    learning_rate=1e-3,
    warmup_steps=4,
    log_every=3,
    validate_every=100,
    num_workers=0,
)


def short_train(
    audio: Path, out: Path, autoencoder: Autoencoder | None = None, **options: Any
) -> Autoencoder:
    """Stage 1 of the given autoencoder, or of a new tiny one."""
    autoencoder = autoencoder or make_autoencoder()
    train_autoencoder(autoencoder, scan(audio), out, **(_shared() | options))
    return autoencoder


def short_finetune(
    audio: Path, out: Path, tokenizer: LatentTokenizer | None = None, **options: Any
) -> LatentTokenizer:
    """Stage 3 of the given tokenizer, or of a new tiny one."""
    tokenizer = tokenizer or make_tokenizer()
    shared = {**_shared(), "finetune": FinetuneConfig()}
    finetune_decoder(tokenizer, scan(audio), out, **(shared | options))
    return tokenizer


def _shared() -> dict[str, Any]:
    losses, augmentation = ReconstructionConfig(), Augmentation()
    return {"loop": LOOP, "losses": losses, "augmentation": augmentation, "progress": False}


def interrupt_at(monkeypatch, step: int) -> None:
    """Makes the next run raise, as a kill would, after a checkpoint at ``step``."""
    real = Trainer.save

    def save(self) -> None:
        real(self)
        if self.state.step >= step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save)


def read_log(out: Path) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
