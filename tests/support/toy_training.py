"""A model of a few numbers, and a task without data, to try the trainer on; runs by itself in
several processes: ``toy_training.py OUT STEPS``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizer.training import RunLog, Task, Trainer, TrainingConfig

CONFIG = TrainingConfig(
    steps=8,
    batch_size=2,
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

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))

    def forward(self, values: Tensor, noise: Tensor | None = None) -> Tensor:
        loss = (self.weight - values).square().mean() + 0.0 * self.other.sum()
        return loss if noise is None else loss + (self.other - noise).square().mean()


class ToyTask(Task):
    """Batch number i of the whole run is the same however many processes share them.

    Args:
        rows: Values per batch.
        noise: Whether to draw from each source of randomness.
        nan_at: Batches whose loss is NaN.
        kill_at: Batch at which the process "dies", of a KeyboardInterrupt.
    """

    def __init__(
        self,
        rows: int = 2,
        *,
        noise: bool = True,
        nan_at: Collection[int] = (),
        kill_at: int | None = None,
    ) -> None:
        self.module, self.rows, self.noise = ToyModel(), rows, noise
        self.nan_at, self.kill_at = nan_at, kill_at

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        step = first
        while step != self.kill_at:
            number = step * world_size + rank
            rows = torch.arange(number * self.rows, (number + 1) * self.rows)
            values = torch.stack([torch.sin(rows * k + 1.0) + k for k in range(3)], dim=-1)
            yield {"values": values * (float("nan") if step in self.nan_at else 1.0)}
            step += 1
        raise KeyboardInterrupt

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        noise = torch.randn(2, generator=generator) + torch.rand(2) if self.noise else None
        return {"loss": module(batch["values"], noise)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert not module.training
        return {"loss": float(module(torch.ones(2, 3)))}

    def show(self, step: int, folder: Path, log: RunLog) -> None:
        del step, log
        assert not self.module.training
        folder.mkdir(parents=True)


def toy_train(
    out: Path, config: TrainingConfig = CONFIG, task: ToyTask | None = None, **description: str
) -> ToyModel:
    """Runs a task; returns its model, with the averaged weights."""
    task = task or ToyTask()
    Trainer(task, config, out, description=description, progress=False).run()
    return task.module


if __name__ == "__main__":
    # The schedule depends on the number of all steps, so the first of two parts is "killed".
    stop = int(sys.argv[2])
    config = replace(CONFIG, steps=6, checkpoint_every=2)
    try:
        toy_train(Path(sys.argv[1]), config, ToyTask(noise=False, kill_at=stop))
    except KeyboardInterrupt:
        assert stop < 6
