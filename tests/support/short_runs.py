"""Settings of short training runs, their logs, and a way to interrupt them."""

import json
from pathlib import Path

from tokenizer.training import CropTrainingConfig, Trainer

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
