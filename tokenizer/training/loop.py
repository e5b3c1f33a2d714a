"""The training loop that every stage with gradients shares.

All that is random in a step is drawn from a generator seeded with ``(seed, step)``, and the data
are a function of the step too, so a run that was killed and resumed takes the same steps as one
that was not. Neither depends on how many processes share a step's crops.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from tqdm import tqdm

from tokenizer.errors import InputError, StateError
from tokenizer.training.adversarial import Adversary
from tokenizer.training.state import (
    State,
    WeightAverage,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
)

# Batches that give no finite gradient are skipped; this many in a row mean that the run itself is
# broken.
MAX_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: Optimizer steps of the whole run.
        batch_size: Crops per step and process.
        crop_seconds: Length of a crop.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to a hundredth of the
            peak.
        warmup_steps: Length of the warm-up.
        weight_decay: Of AdamW, on matrices only.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay per step of the averaged weights, which are what the run delivers.
        log_every: Steps between lines of the log.
        validate_every: Steps between validations; 0 validates at the end only.
        checkpoint_seconds: Seconds between checkpoints.
        mixed_precision: "no", "bf16" or "fp16", as `accelerate` understands it.
        num_workers: Processes that read data.
        seed: Of everything random.
    """

    steps: int
    batch_size: int = 12
    crop_seconds: float = 1.5
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 500
    checkpoint_seconds: float = 180.0
    mixed_precision: str = "no"
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value < 0:
                raise InputError(f"{field.name} must not be negative, got {value}.")
        for name in ("steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.crop_seconds < math.inf:
            raise InputError(f"crop_seconds must be positive, got {self.crop_seconds:g}.")


@runtime_checkable
class Task(Protocol):
    """What a stage is about; `run` does the rest."""

    @property
    def module(self) -> nn.Module:
        """All that is trained, as one module (wrapped for several processes by the loop)."""
        ...

    def batches(self, first_step: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        """Yields one batch per step from ``first_step`` on."""
        ...

    def losses(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Returns named scalar losses, means over items; ``"loss"`` is the one to minimise.

        The generator is the same in all processes: see `item_generators`.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Returns named figures of `module` on held-out data."""
        ...


def learning_rate(step: int, config: LoopConfig) -> float:
    """The schedule: linear warm-up, then a cosine down to 1% of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))


def item_generators(batch: dict[str, Tensor], generator: torch.Generator) -> list[torch.Generator]:
    """A generator for each item of a batch, by its ``"index"`` in the data of the whole run.

    What is drawn for an item from it is the same in whatever process the item is.
    """
    base = int(torch.randint(2**62, (), generator=generator))
    return [torch.Generator().manual_seed(base + i) for i in batch["index"].tolist()]


def _processes() -> PartialState:
    # `Accelerator` reads this by itself, but finds the state that was made first.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """False in all but one of the processes that train together."""
    return _processes().is_main_process


def training_device() -> torch.device:
    """Where this process trains: its GPU, or the CPU."""
    device = _processes().device
    assert device is not None
    return device


def num_processes() -> int:
    """Processes that train together; 1 unless started with ``accelerate launch``."""
    found = _processes().num_processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if found == 1 < started:
        raise StateError(
            f"{started} processes were started, but each would train alone: there are not as many "
            "GPUs. Start them with `accelerate launch --cpu` or in fewer numbers."
        )
    return found


class RunLog:
    """``log.jsonl`` and, where TensorBoard is installed, its event files.

    Args:
        folder: Where to write; must exist.
        first_step: Lines from this step on, left by a run that died after its last checkpoint, are
            dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = folder / "log.jsonl"
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if _step(line) <= first_step]
            partial = folder / ".log.jsonl.partial"
            partial.write_text("".join(line + "\n" for line in kept))
            partial.replace(self.path)
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one line."""
        line = {"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event files."""
        if self.board is not None:
            self.board.close()


def _step(line: str) -> float:
    """The step of a line of the log; infinite for one that a kill or a full disk has cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _update(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    gradient_clip: float,
) -> float | None:
    """One step down the gradient; returns its norm, or None if it was not finite: no step then."""
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = float(accelerator.clip_grad_norm_(module.parameters(), gradient_clip) or 0.0)
    finite = math.isfinite(norm)
    # float16's scaler looks for itself, and learns from it.
    if finite or accelerator.scaler is not None:
        optimizer.step()
    return norm if finite else None


def _over_processes(
    accelerator: Accelerator, values: dict[str, float], reduction: str
) -> dict[str, float]:
    """Named figures, reduced over all processes, which have the same names."""
    if accelerator.num_processes == 1:
        return values
    own = torch.tensor(list(values.values()), dtype=torch.float32, device=accelerator.device)
    reduced = cast("Tensor", accelerator.reduce(own, reduction))
    return dict(zip(values, reduced.tolist(), strict=True))


def _update_discriminators(
    accelerator: Accelerator,
    adversary: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    gradient_clip: float,
) -> None:
    """The same for discriminators, which are called thrice a step, more than DDP's hooks allow."""
    optimizer.zero_grad()
    loss.backward()
    for parameter in adversary.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")  # pyright: ignore[reportAttributeAccessIssue]
    norm = torch.nn.utils.clip_grad_norm_(adversary.parameters(), gradient_clip)
    if bool(torch.isfinite(norm)):
        optimizer.step()


def run(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    description: dict[str, Any],
    adversary: Adversary | None = None,
    progress: bool = True,
) -> bool:
    """Trains ``task.module`` until ``config.steps``, from the last checkpoint on.

    Afterwards the module holds the averaged weights.

    Args:
        task: What to train.
        config: How.
        out: Folder of the run: ``log.jsonl``, ``tensorboard/``, ``checkpoint/``.
        description: JSON values that a resumed run must share with the run it continues, besides
            ``config``: what it trains, and on what.
        adversary: Discriminators, which are trained on the losses' ``"discriminator"``.
        progress: Whether to show a progress bar.

    Returns:
        Whether all steps are done.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    out.mkdir(parents=True, exist_ok=True)
    module = task.module.to(accelerator.device)
    state = State(
        module,
        make_optimizer(module, config.learning_rate, config.weight_decay),
        WeightAverage(module, config.ema_decay),
        scaler=accelerator.scaler,
    )
    judges, discriminator_rate = None, 0.0
    if adversary is not None:
        discriminator_rate = adversary.config.discriminator_rate
        adversary.to(accelerator.device)
        judges = adversary, make_optimizer(adversary, config.learning_rate, config.weight_decay)
        state.adversary, state.adversary_optimizer = judges
    unshared = ("log_every", "validate_every", "checkpoint_seconds", "num_workers", "batch_size")
    settings = {k: v for k, v in asdict(config).items() if k not in unshared} | description
    # However many processes share them.
    settings["crops_per_step"] = config.batch_size * accelerator.num_processes
    settings = json.loads(json.dumps(settings))
    checkpoint = out / "checkpoint"
    load_checkpoint(checkpoint, state, settings)
    first = state.step
    wrapped, optimizer = accelerator.prepare(module, state.optimizer)
    main = accelerator.is_main_process
    log = RunLog(out, first) if main else None
    bar = tqdm(total=config.steps, initial=first, disable=not (progress and main), unit="step")
    sums: dict[str, float] = {}
    skipped = skipped_in_a_row = unreadable = 0
    saved = logged = time.monotonic()

    def validate() -> None:
        if log is None:
            return
        state.average.swap(module)
        module.eval()
        log.write(state.step, {f"val/{name}": value for name, value in task.validate().items()})
        module.train()
        state.average.swap(module)

    module.train()
    for loaded in task.batches(first, accelerator.process_index, accelerator.num_processes):
        generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + state.step) * 1_009 % 2**63
        )
        unreadable += int(loaded["unreadable"].sum()) if "unreadable" in loaded else 0
        rate = learning_rate(state.step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = {name: value.to(accelerator.device) for name, value in loaded.items()}
        losses = task.losses(wrapped, batch, generator)
        norm = _update(accelerator, wrapped, optimizer, losses["loss"], config.gradient_clip)
        if norm is not None and judges is not None and "discriminator" in losses:
            for group in judges[1].param_groups:
                group["lr"] = rate * discriminator_rate
            loss = losses["discriminator"]
            _update_discriminators(accelerator, *judges, loss, config.gradient_clip)
        if norm is not None:
            state.average.update(module, state.step)
            skipped_in_a_row = 0
            for name, value in (losses | {"gradient": torch.tensor(norm)}).items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            sums["count"] = sums.get("count", 0.0) + 1
        else:
            skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
            if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise StateError(
                    f"{skipped_in_a_row} batches in a row gave no finite gradient (step "
                    f"{state.step}). Lower the learning rate, or check the data for NaN."
                )
        state.step += 1
        bar.update()
        now = time.monotonic()
        finished = state.step == config.steps
        if (state.step % config.log_every == 0 or finished) and sums:
            count = sums.pop("count")
            means = {f"train/{name}": value / count for name, value in sums.items()}
            # Losses are of the crops of all processes.
            means = _over_processes(accelerator, means, "mean")
            means |= {"train/learning_rate": rate, "train/skipped": skipped}
            means |= _over_processes(accelerator, {"train/unreadable": float(unreadable)}, "sum")
            means["train/steps_per_second"] = count / max(now - logged, 1e-9)
            if log is not None:
                log.write(state.step, means)
            bar.set_postfix({k.split("/")[1]: f"{v:.3f}" for k, v in list(means.items())[:3]})
            sums, logged = {}, now
        if config.validate_every and state.step % config.validate_every == 0 and not finished:
            validate()
        if main and now - saved > config.checkpoint_seconds:
            save_checkpoint(checkpoint, state, settings)
            saved = now
    if state.step > first:
        if main:
            save_checkpoint(checkpoint, state, settings)
        validate()
    bar.close()
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    state.average.swap(module)
    return state.step >= config.steps
