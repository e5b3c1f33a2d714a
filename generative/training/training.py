"""The training loop of both families, on `accelerate`.

All that is random in a step is drawn from generators seeded with ``(seed, step, process)``, and the
batches are a function of the step too, so a run that was killed and resumed takes the same steps as
one that was not: bit for bit on the same machine.

One process, several (``accelerate launch``) and sharded parameters (FSDP2 in accelerate's
configuration) run the same code.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from generative.protocol import Batch
from generative.training.checkpoints import (
    WeightAverage,
    load_checkpoint,
    read_state,
    save_checkpoint,
    trained_parameters,
    whole,
)
from generative.training.run_log import RunLog
from generative.training.training_config import UNSHARED, TrainingConfig, learning_rate, seed_of
from tokenizer.errors import InputError, StateError

# Batches that give no finite gradient are skipped; this many in a row mean that the run itself is
# broken.
MAX_SKIPPED_IN_A_ROW = 20


@runtime_checkable
class Task(Protocol):
    """What is trained on what; `train` does the rest."""

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[Batch]:
        """Yields this process' batches without end, from the ``first``-th on."""
        ...

    def validation(self) -> Iterator[Batch]:
        """Yields the held-out batches, the same ones each time."""
        ...

    def show(self, model: Any, step: int, folder: Path, log: RunLog) -> None:
        """Writes samples of the model into a folder and adds them to the log."""
        ...


class LossModule(nn.Module):
    """A model whose ``forward`` is its training loss: wrappers for several processes want that."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """See `GenerativeModel.training_loss`."""
        return self.model.training_loss(batch, generator)


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    parameters = list(trained_parameters(module).values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def is_main_process() -> bool:
    """False in all but one of the processes that ``accelerate launch`` starts."""
    # `Accelerator` reads this by itself, but a finished run makes none.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).is_main_process


def train(
    build: Callable[[], Any],
    task: Task,
    config: TrainingConfig,
    out: Path,
    *,
    description: dict[str, Any],
    progress: bool = True,
) -> Any:
    """Trains until ``config.steps``, from the last checkpoint on.

    Args:
        build: Makes the untrained model (a ``torch.nn.Module`` and `GenerativeModel`); the same one
            each time.
        task: Data and samples.
        config: How to train.
        out: Folder of the run: ``log.jsonl``, ``curves.png``, ``tensorboard/``, ``samples/``,
            ``checkpoint/``.
        description: JSON values that a resumed run must share with the run it continues, besides
            ``config``.
        progress: Whether to show a progress bar.

    Returns:
        The model with the averaged weights, in evaluation mode on the CPU.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in UNSHARED} | description
    settings = json.loads(json.dumps(settings))
    checkpoint = out / "checkpoint"
    state = read_state(checkpoint, settings)
    if state is None or state[1]["step"] < config.steps:
        model = build()
        out.mkdir(parents=True, exist_ok=True)
        _Run(model, task, config, out, settings, progress).run()
        state = read_state(checkpoint, settings)
    assert state is not None
    model = build()
    load_average(state[0], model)
    return model.eval()


@torch.no_grad()
def load_average(checkpoint: Path, model: nn.Module) -> None:
    """Puts a checkpoint's averaged weights into a model that is not sharded."""
    stored = load_file(checkpoint / "average.safetensors")
    parameters = trained_parameters(LossModule(model))
    if stored.keys() != parameters.keys():
        raise InputError(f"{checkpoint} holds another model.")
    for name, value in parameters.items():
        value.copy_(stored[name])


class _Run:
    """One call of `train`, and what its steps share."""

    def __init__(
        self,
        model: Any,
        task: Task,
        config: TrainingConfig,
        out: Path,
        settings: dict[str, Any],
        progress: bool,
    ) -> None:
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulate,
            # Which conditions are there differs from batch to batch.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.task, self.config, self.out, self.settings = task, config, out, settings
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and not self.accelerator.is_fsdp2:
            raise InputError(
                "Sharded training needs fsdp_version: 2 in accelerate's configuration."
            )
        module = LossModule(model)
        self.wrapped, self.optimizer = self.accelerator.prepare(
            module, make_optimizer(module, config)
        )
        self.module = self.accelerator.unwrap_model(self.wrapped)
        self.average = WeightAverage(self.module, config.ema_decay)
        self.step = self._resume()
        self.main = self.accelerator.is_main_process
        self.log = RunLog(out, self.step) if self.main else None
        self.bar = tqdm(
            total=config.steps, initial=self.step, disable=not (progress and self.main), unit="step"
        )
        self.sums: dict[str, float] = {}
        self.skipped = self.skipped_in_a_row = 0
        self.saved = self.logged = time.monotonic()

    @property
    def _devices(self) -> list[int]:
        """Those, besides the CPU, whose random state a step touches."""
        index = self.accelerator.device.index
        return [index] if self.accelerator.device.type == "cuda" and index is not None else []

    @property
    def _scaler(self) -> Any:
        """Of fp16's gradients; None for other precisions."""
        return self.accelerator.scaler

    def _resume(self) -> int:
        found = read_state(self.out / "checkpoint", self.settings)
        if found is None:
            return 0
        folder, state = found
        load_checkpoint(folder, self.module, self.average, self.optimizer)
        if self._scaler is not None and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        return state["step"]

    def run(self) -> None:
        """Takes all the steps that are left."""
        config = self.config
        self.module.train()
        batches = self.task.batches(
            self.step * config.accumulate,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        while self.step < config.steps:
            self._take_step(batches)
            self.step += 1
            self.bar.update()
            last = self.step == config.steps
            if self.step % config.log_every == 0 or last:
                self._write_means()
            if last or self._checkpoint_is_due():
                self._save()
            if last or (config.validate_every and self.step % config.validate_every == 0):
                self._validate()
            if config.sample_every and (last or self.step % config.sample_every == 0):
                self._show()
        self.bar.close()
        if self.log is not None:
            self.log.close()
        self.accelerator.wait_for_everyone()

    def _take_step(self, batches: Iterator[Batch]) -> None:
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        found: dict[str, float] = {}
        for part in range(config.accumulate):
            batch = self._to_device(next(batches))
            waits = part < config.accumulate - 1
            context = accelerator.no_sync(self.wrapped) if waits else nullcontext()
            seed = seed_of(config, self.step, part, accelerator.process_index)
            # Dropout inside library models draws from torch's own generator.
            with torch.random.fork_rng(self._devices), context:
                torch.manual_seed(seed)
                losses = self.wrapped(batch, torch.Generator().manual_seed(seed))
                accelerator.backward(losses["loss"])
            for name, value in losses.items():
                found[name] = found.get(name, 0.0) + float(value.detach()) / config.accumulate
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.gradient_clip)
        size = float(whole(norm)) if norm is not None else 0.0
        finite = math.isfinite(size)
        # fp16's scaler looks for itself, and learns from it.
        if finite or self._scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            self.average.update(self.module, self.step)
            self.skipped_in_a_row = 0
            for name, value in (found | {"gradient": size, "count": 1.0}).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            return
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise StateError(
                f"{self.skipped_in_a_row} batches in a row gave no finite gradient (step"
                f" {self.step}). Lower the learning rate, or check the data for NaN."
            )

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _write_means(self) -> None:
        if self.log is None or not self.sums:
            return
        now, count = time.monotonic(), self.sums.pop("count")
        means = {f"train/{name}": value / count for name, value in self.sums.items()}
        means |= {
            "train/learning_rate": learning_rate(self.step - 1, self.config),
            "train/skipped": float(self.skipped),
            "train/steps_per_second": count / max(now - self.logged, 1e-9),
        }
        self.log.write(self.step, means)
        self.bar.set_postfix(loss=f"{means['train/loss']:.4f}")
        self.sums, self.logged = {}, now

    def _checkpoint_is_due(self) -> bool:
        config = self.config
        if config.checkpoint_every and self.step % config.checkpoint_every == 0:
            return True
        due = [time.monotonic() - self.saved > 60 * config.checkpoint_minutes]
        if self.accelerator.num_processes > 1:
            # All have to agree, as all take part in gathering shards. They ask each other rarely.
            if self.step % config.log_every:
                return False
            broadcast_object_list(due)
        return due[0]

    def _save(self) -> None:
        state: dict[str, Any] = {"step": self.step, "config": self.settings}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        folder = self.out / "checkpoint"
        save_checkpoint(folder, state, self.module, self.average, self.optimizer, write=self.main)
        self.saved = time.monotonic()

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean losses of the averaged weights; every process computes them, one writes."""
        self.average.swap(self.module)
        self.module.eval()
        sums: dict[str, float] = {}
        weight = 0
        for index, batch in enumerate(self.task.validation()):
            frames = int(batch["mask"].sum())
            generator = torch.Generator().manual_seed(index)
            for name, value in self.wrapped(self._to_device(batch), generator).items():
                sums[name] = sums.get(name, 0.0) + float(value) * frames
            weight += frames
        self.module.train()
        self.average.swap(self.module)
        if self.log is not None and weight:
            self.log.write(self.step, {f"val/{k}": v / weight for k, v in sums.items()})
            self.log.draw()

    def _show(self) -> None:
        # Shards can only be run by all processes together, and generation is no `forward`.
        if self.log is None or self.sharded:
            return
        self.average.swap(self.module)
        self.module.eval()
        folder = self.out / "samples" / f"step-{self.step:07d}"
        self.task.show(self.module.model, self.step, folder, self.log)
        self.module.train()
        self.average.swap(self.module)
