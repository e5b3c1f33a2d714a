"""The one training loop: of the tokenizer's stages and of the generative models.

All that is random in a step, its data included, follows from the run's seed and the step. So a run
that was killed and resumed takes the same steps as one that was not (docs/exactness.md).
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from tokenizer.devices import send
from tokenizer.errors import InputError, StateError
from tokenizer.training.adversarial import Adversary
from tokenizer.training.checkpoint import (
    TrainingState,
    WeightAverage,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
    whole,
)
from tokenizer.training.config import TrainingConfig, learning_rate, process_seed, step_seed
from tokenizer.training.processes import num_processes
from tokenizer.training.run_log import RunLog

# Batches that give no finite gradient are skipped; so many in a row mean that the run is broken.
MAX_SKIPPED_IN_A_ROW = 20


class Task(ABC):
    """What is trained, on what; `Trainer` does the rest.

    All that is trained is one ``module``, whose ``forward`` is what several processes share.

    Attributes:
        module: What is trained.
        on_host: Tensors of a batch that the host reads; the others are sent to the device.
    """

    module: nn.Module
    on_host: ClassVar[frozenset[str]] = frozenset({"unreadable"})

    @abstractmethod
    def batches(self, first: int, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        """Yields this process' batches from the ``first``-th on.

        A batch's float ``"unreadable"``, if there is one, counts what could not be read.
        """

    @abstractmethod
    def losses(
        self, module: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Computes named scalar losses, means over the batch; ``"loss"`` is the one to minimise.

        All processes that share a step have the same ``generator``; torch's own is seeded with
        another number in each.
        """

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Computes named figures of a module in evaluation mode, on held-out data."""
        del module
        return {}

    def show(self, step: int, folder: Path, log: RunLog) -> None:
        """Writes samples of `module` into a new folder and adds them to the log."""
        del step, folder, log


class Trainer:
    """One training run, from its last checkpoint to `TrainingConfig.steps`.

    Args:
        task: What to train.
        config: How.
        out: Folder of the run, for log, curves, samples and checkpoint.
        description: JSON values that a resumed run must share with the run it continues, besides
            the configuration: what it trains, and on what.
        adversary: Discriminators, which are trained on the losses' ``"discriminator"``.
        conditional: Whether some batches leave parameters without gradient.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If ``out`` holds a checkpoint of another run, or of more steps.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        out: Path,
        *,
        description: dict[str, Any],
        adversary: Adversary | None = None,
        conditional: bool = False,
        progress: bool = True,
    ) -> None:
        num_processes()  # Refuses processes that would train alone.
        self.task, self.config, self.out, self.adversary = task, config, out, adversary
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=conditional)],
        )
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and not self.accelerator.is_fsdp2:
            raise InputError(
                "Sharded training needs fsdp_version: 2 in accelerate's configuration."
            )
        items = config.batch_size * config.accumulate * self.accelerator.num_processes
        settings = config.fixed_settings() | {"items_per_step": items} | description
        self.settings = json.loads(json.dumps(settings))
        self._prepare()
        self.log_file = RunLog(out, self.state.step) if self.accelerator.is_main_process else None
        self.bar = tqdm(
            total=config.steps,
            initial=self.state.step,
            disable=not progress or self.log_file is None,
            unit="step",
        )
        # By the names of the losses. They stay on the device: to read them is to wait for it.
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.gradient_sum = 0.0
        self.steps_summed = self.skipped = self.skipped_in_a_row = 0
        self.unreadable: float | None = None
        self.saved_at = self.logged_at = time.monotonic()

    def _prepare(self) -> None:
        """Moves the modules to their device, makes the optimizers, and restores a checkpoint."""
        config, module = self.config, self.task.module
        how = config.learning_rate, config.weight_decay, self.accelerator.device
        optimizer = make_optimizer(module, *how)
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.module: nn.Module = self.accelerator.unwrap_model(self.wrapped)
        self.state = TrainingState(
            self.module,
            self.optimizer,
            WeightAverage(self.module, config.ema_decay),
            scaler=self.accelerator.scaler,
        )
        if self.adversary is not None:
            self.adversary.to(self.accelerator.device)
            self.state.adversary = self.adversary
            self.state.adversary_optimizer = make_optimizer(self.adversary, *how)
        if config.compile:
            self.module.compile()
        self.out.mkdir(parents=True, exist_ok=True)
        load_checkpoint(self.out / "checkpoint", self.state, self.settings)
        if self.state.step > config.steps:
            raise InputError(
                f"The run in {self.out} has taken {self.state.step} steps already, more than the "
                f"{config.steps} of --steps: name as many or more, or another --out."
            )

    def run(self) -> None:
        """Takes all the steps that are left; then the module holds the averaged weights."""
        config, state = self.config, self.state
        self.module.train()
        batches = self.task.batches(
            state.step * config.accumulate,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

        def is_due(every: int) -> bool:
            return state.step == config.steps or (every > 0 and state.step % every == 0)

        while state.step < config.steps:
            self.step(batches)
            self.bar.update()
            if is_due(config.log_every):
                self.log()
            if is_due(config.checkpoint_every) or self._time_to_save():
                self.save()
            if is_due(config.validate_every):
                self.validate()
            if config.sample_every and is_due(config.sample_every):
                self.show()
        self.bar.close()
        if self.log_file is not None:
            self.log_file.close()
        self.accelerator.wait_for_everyone()
        state.average.swap(self.module)

    def step(self, batches: Iterator[dict[str, Any]]) -> None:
        """Takes one optimizer step, or skips it if the gradient is not finite."""
        config, state, accelerator = self.config, self.state, self.accelerator
        rate = learning_rate(state.step, config)
        _set_rate(self.optimizer, rate)
        if self.adversary is not None:
            self.adversary.step = state.step
        losses: dict[tuple[str, ...], Tensor] = {}
        for part in range(config.accumulate):
            found = self._backward(next(batches), part)
            values = torch.stack([value.detach().float() for value in found.values()])
            _add(losses, tuple(found), values * (1 / config.accumulate))
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), config.gradient_clip)
        gradient = 0.0 if norm is None else float(whole(norm))
        is_finite = math.isfinite(gradient)
        # The scaler of float16 checks the gradient itself, and adapts.
        if is_finite or accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.adversary is not None:
            self._update_adversary(rate, skip=not is_finite)
        if is_finite:
            state.average.update(self.module, state.step)
            for names, values in losses.items():
                _add(self.sums, names, values)
            self.gradient_sum += gradient
            self.steps_summed += 1
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise StateError(
                f"{self.skipped_in_a_row} batches in a row gave no finite gradient (step "
                f"{state.step}). Lower the learning rate, or check the data for NaN."
            )
        state.step += 1

    def _backward(self, loaded: dict[str, Any], part: int) -> dict[str, Tensor]:
        """Adds the gradient of one batch; returns its losses."""
        config, accelerator, step = self.config, self.accelerator, self.state.step
        if "unreadable" in loaded:
            self.unreadable = (self.unreadable or 0.0) + sum(loaded["unreadable"].tolist())
        device = accelerator.device
        sent = {k for k, v in loaded.items() if isinstance(v, Tensor)} - self.task.on_host
        batch = {k: send(v, device) if k in sent else v for k, v in loaded.items()}
        is_last = part == config.accumulate - 1
        with (
            # Dropout and the like draw from torch's own generator.
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            nullcontext() if is_last else accelerator.no_sync(self.wrapped),
        ):
            torch.manual_seed(process_seed(config, step, part, accelerator.process_index))
            generator = torch.Generator().manual_seed(step_seed(config, step))
            losses = self.task.losses(self.wrapped, batch, generator)
            accelerator.backward(losses["loss"])
        if self.adversary is not None and "discriminator" in losses:
            (losses["discriminator"] / config.accumulate).backward()
        return losses

    def _update_adversary(self, rate: float, *, skip: bool) -> None:
        """Takes a step with the discriminators, if they have a finite gradient."""
        adversary, optimizer = self.adversary, self.state.adversary_optimizer
        assert adversary is not None
        assert optimizer is not None
        _set_rate(optimizer, rate * adversary.config.discriminator_rate)
        parameters = [p for p in adversary.parameters() if p.grad is not None]
        if parameters and not skip:
            # They are called three times a step, which DDP does not allow: reduced here instead.
            self._reduce_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
            if bool(torch.isfinite(norm)):
                optimizer.step()
        optimizer.zero_grad()

    def _reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Averages the gradients over all processes, in one exchange."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [cast("Tensor", parameter.grad) for parameter in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        reduced = cast("Tensor", self.accelerator.reduce(flat, "mean"))
        parts = reduced.split([gradient.numel() for gradient in gradients])
        shaped = [part.view_as(own) for part, own in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)  # pyright: ignore[reportPrivateImportUsage]

    def log(self) -> None:
        """Writes the means of the losses since the last time, over all processes."""
        if not self.steps_summed:
            return
        now, count = time.monotonic(), self.steps_summed
        sums: dict[str, float] = {}
        for names, values in self.sums.items():
            for name, value in zip(names, values.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        sums["gradient"] = self.gradient_sum
        means = {f"train/{name}": value / count for name, value in sums.items()}
        means = self._reduced(means, "mean")
        means["train/learning_rate"] = learning_rate(self.state.step - 1, self.config)
        means["train/skipped"] = float(self.skipped)
        if self.unreadable is not None:
            means |= self._reduced({"train/unreadable": self.unreadable}, "sum")
        means["train/steps_per_second"] = count / max(now - self.logged_at, 1e-9)
        if self.log_file is not None:
            self.log_file.write(self.state.step, means)
        self.bar.set_postfix({k.split("/")[1]: f"{v:.3f}" for k, v in list(means.items())[:3]})
        self.sums, self.gradient_sum, self.steps_summed, self.logged_at = {}, 0.0, 0, now

    def _reduced(self, values: dict[str, float], reduction: str) -> dict[str, float]:
        """Figures reduced over all processes, which have the same names."""
        if self.accelerator.num_processes == 1:
            return values
        own = torch.tensor(list(values.values()), device=self.accelerator.device)
        reduced = cast("Tensor", self.accelerator.reduce(own, reduction))
        return dict(zip(values, reduced.tolist(), strict=True))

    def _time_to_save(self) -> bool:
        is_time = [time.monotonic() - self.saved_at > self.config.checkpoint_seconds]
        if self.sharded:
            # All processes gather shards, so they have to agree. They ask each other rarely.
            if self.state.step % self.config.log_every:
                return False
            broadcast_object_list(is_time)
        return is_time[0]

    def save(self) -> None:
        """Writes the checkpoint."""
        if self.log_file is not None or self.sharded:
            folder, write = self.out / "checkpoint", self.log_file is not None
            save_checkpoint(folder, self.state, self.settings, write=write)
        self.saved_at = time.monotonic()

    def validate(self) -> None:
        """Logs the task's figures of the averaged weights."""
        # Shards can only be run by all processes together.
        if self.log_file is None and not self.sharded:
            return
        with self._averaged():
            figures = self.task.validate(self.wrapped if self.sharded else self.module)
        if self.log_file is not None and figures:
            self.log_file.write(self.state.step, {f"val/{k}": v for k, v in figures.items()})
            self.log_file.draw()

    def show(self) -> None:
        """Writes samples of the averaged weights; shards cannot make any."""
        if self.log_file is None or self.sharded:
            return
        folder = self.out / "samples" / f"step-{self.state.step:07d}"
        with self._averaged():
            self.task.show(self.state.step, folder, self.log_file)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The module in evaluation mode, with the averaged weights."""
        self.state.average.swap(self.module)
        self.module.eval()
        with torch.no_grad():
            yield
        self.module.train()
        self.state.average.swap(self.module)


def _add(sums: dict[tuple[str, ...], Tensor], names: tuple[str, ...], values: Tensor) -> None:
    """Adds values to the sums of their names, without reading them."""
    sums[names] = sums[names] + values if names in sums else values


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
