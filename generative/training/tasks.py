"""The tasks that `tokenizer.training.Trainer` trains generative models with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from generative.protocol import Batch
from tokenizer.training import Task


class LossModule(nn.Module):
    """A model whose ``forward`` is its training loss: wrappers for several processes want that."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """See `GenerativeModel.training_loss`."""
        return self.model.training_loss(batch, generator)


class ModelTask(Task):
    """Trains a generative model, which is a ``torch.nn.Module``, on batches of its own loss."""

    # The models check these, and bring them to their device by themselves.
    on_host = frozenset({"codes", "ended", "label", "mask"})

    def __init__(self, model: Any) -> None:
        self.model, self.module = model, LossModule(model)

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Yields the held-out batches, the same ones each time."""

    def losses(
        self, module: nn.Module, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The model's losses; each process draws noise of its own."""
        del generator
        # The trainer has just seeded torch's generator with a number for step and process.
        return module(batch, torch.Generator().manual_seed(torch.initial_seed()))

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Mean losses over all frames of the held-out batches."""
        sums: dict[str, Tensor] = {}
        num_frames = 0
        for index, batch in enumerate(self.validation()):
            frames = int(batch["mask"].sum())
            losses = module(batch, torch.Generator().manual_seed(index))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value * frames
            num_frames += frames
        return {name: float(value) / num_frames for name, value in sums.items()}
