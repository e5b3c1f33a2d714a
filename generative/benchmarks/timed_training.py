"""Training for a given CPU time, so that what costs less learns in more steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from generative.protocol import Batch

# Share of the time in which the learning rate rises; then it falls along a cosine.
WARMUP = 0.05


def train(model: Any, batches: Iterator[Batch], seconds: float, learning_rate: float) -> int:
    """Trains a `GenerativeModel` for so many seconds of CPU time; returns the number of steps.

    It is CPU time, so that other programs on the machine change little.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    start, steps = time.process_time(), 0
    model.train()
    while (share := (time.process_time() - start) / seconds) < 1:
        rate = min(share / WARMUP, 0.5 + 0.5 * math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = learning_rate * max(rate, 0.01)
        generator = torch.Generator().manual_seed(steps)
        model.training_loss(next(batches), generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    return steps
