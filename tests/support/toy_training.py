"""A model of a few numbers, and a task without data, to try the training loop on; runs by itself
in several processes: ``toy_training.py OUT STEPS``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generative.training.training import train
from generative.training.training_config import TrainingConfig

CONFIG = TrainingConfig(
    steps=8,
    learning_rate=0.1,
    warmup_steps=3,
    gradient_clip=1e9,
    ema_decay=0.8,
    log_every=2,
    validate_every=4,
    sample_every=6,
    num_workers=0,
)


class ToyModel(nn.Module):
    """Learns the mean of what it sees; a second weight learns noise, so that all draws count."""

    column, labels = "codes", ()

    def __init__(self, nan_at: Collection[int] = (), kill: tuple[type, int] | None = None) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
        self.nan_at, self.kill, self.calls = nan_at, kill, 0

    def training_loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        if self.kill is not None and self.training and self.calls >= self.kill[1]:
            raise self.kill[0]
        loss = (self.weight - batch["values"]).square().mean()
        if self.training and self.calls in self.nan_at:
            loss = loss * float("nan")
        if self.training:
            self.calls += 1
            # One draw from each source of randomness.
            noise = torch.randn(2, generator=generator) + torch.rand(2)
            loss = loss + 0.0 * self.other.sum()
            if generator.initial_seed() and not torch.distributed.is_initialized():
                loss = loss + (self.other - noise).square().mean()
        return {"loss": loss}

    def generate_rows(self, request: Any, generator: torch.Generator) -> list[dict[str, Any]]:
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path) -> None:
        raise NotImplementedError


class ToyTask:
    """Batch number i of the whole run is the same however many processes share them."""

    def __init__(self, rows: int = 2) -> None:
        self.rows = rows

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        step = first
        while True:
            number = step * world_size + rank
            rows = torch.arange(number * self.rows, (number + 1) * self.rows)
            values = torch.stack([torch.sin(rows * k + 1.0) + k for k in range(3)], dim=-1)
            yield {"values": values, "mask": torch.ones(self.rows, 1, dtype=torch.bool)}
            step += 1

    def validation(self) -> Iterator[dict[str, Tensor]]:
        yield {"values": torch.ones(2, 3), "mask": torch.ones(2, 1, dtype=torch.bool)}

    def show(self, model: Any, step: int, folder: Path, log: Any) -> None:
        del model, step, log
        folder.mkdir(parents=True, exist_ok=True)


def toy_train(
    out: Path,
    config: TrainingConfig,
    *,
    rows: int = 2,
    nan_at: Collection[int] = (),
    kill: tuple[type, int] | None = None,
) -> ToyModel:
    return train(
        lambda: ToyModel(nan_at, kill), ToyTask(rows), config, out, description={}, progress=False
    )


if __name__ == "__main__":
    # All steps are planned from the start, as the schedule depends on them.
    whole = replace(CONFIG, steps=6, checkpoint_every=2)
    if int(sys.argv[2]) < 6:
        try:
            toy_train(Path(sys.argv[1]), whole, kill=(SystemExit, int(sys.argv[2])))
        except SystemExit:
            sys.exit(0)
    toy_train(Path(sys.argv[1]), whole)
