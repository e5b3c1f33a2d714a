"""The training loop that every stage with gradients shares, and its checkpoints.

All that is random in a step is drawn from a generator seeded with ``(seed, step)``, and the data
are a function of the step too, so a run that was killed and resumed takes the same steps as one
that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

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
        validate_every: Steps between validations.
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
                raise ValueError(f"{field.name} must not be negative, got {value}.")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1: {self}.")


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
        """Returns named scalar losses; ``"loss"`` is the one to minimise."""
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


def num_processes() -> int:
    """Processes that train together; 1 unless started with ``accelerate launch``."""
    return PartialState().num_processes


def make_optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


class WeightAverage:
    """Exponential moving average of a module's parameters; buffers are copied.

    The decay grows from 0 with the number of steps, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's weights."""
        keep = min(self.decay, (step + 1) / (step + 10))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - keep)
            else:
                self.values[name].copy_(value)

    def swap(self, module: nn.Module) -> None:
        """Exchanges the module's weights with the average; call twice to undo."""
        current = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        self.values = current


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(
    folder: Path,
    step: int,
    module: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
) -> None:
    """Writes ``folder`` as a whole or not at all: safetensors and JSON, no pickles."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(weights, new / "module.safetensors")
    save_file(average.values, new / "average.safetensors")
    save_file(_optimizer_tensors(optimizer), new / "optimizer.safetensors")
    (new / "state.json").write_text(json.dumps({"step": step, "config": config}, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path,
    module: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
) -> int:
    """Restores everything in place and returns the step to go on with; 0 if there is no checkpoint.

    Raises:
        ValueError: If the checkpoint was made with another configuration.
    """
    if not folder.exists():
        # A kill between the two renames of `save_checkpoint` leaves the previous one under this
        # name.
        folder = folder.with_name(folder.name + ".old")
        if not folder.exists():
            return 0
    state = json.loads((folder / "state.json").read_text())
    changed = [key for key in config if state["config"].get(key) != config[key]]
    if changed:
        was = {key: state["config"].get(key) for key in changed}
        now = {key: config[key] for key in changed}
        raise ValueError(
            f"{folder} was trained with {was}, not {now}. Use the same options, or another --out."
        )
    module.load_state_dict(load_file(folder / "module.safetensors"))
    average.values = load_file(folder / "average.safetensors")
    for name, value in module.state_dict().items():
        average.values[name] = average.values[name].to(value.device)
    _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    return state["step"]


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
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
            self.path.write_text("".join(line + "\n" for line in kept))
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


def run(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    description: dict[str, Any],
    progress: bool = True,
) -> bool:
    """Trains ``task.module`` until ``config.steps``, from the last checkpoint on.

    Afterwards the module holds the averaged weights.

    Args:
        task: What to train.
        config: How.
        out: Folder of the run: ``log.jsonl``, ``tensorboard/``, ``checkpoint/``.
        description: JSON values that a resumed run must share with the run it continues, besides
            ``config``.
        progress: Whether to show a progress bar.

    Returns:
        Whether all steps are done.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    out.mkdir(parents=True, exist_ok=True)
    module = task.module.to(accelerator.device)
    optimizer = make_optimizer(module, config)
    average = WeightAverage(module, config.ema_decay)
    unshared = ("log_every", "validate_every", "checkpoint_seconds", "num_workers")
    settings = {k: v for k, v in asdict(config).items() if k not in unshared} | description
    settings = json.loads(json.dumps(settings))
    checkpoint = out / "checkpoint"
    first = load_checkpoint(checkpoint, module, average, optimizer, settings)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    main = accelerator.is_main_process
    log = RunLog(out, first) if main else None
    bar = tqdm(total=config.steps, initial=first, disable=not (progress and main), unit="step")
    sums: dict[str, float] = {}
    skipped = skipped_in_a_row = 0
    saved = logged = time.monotonic()
    step = first

    def save() -> None:
        if main:
            save_checkpoint(checkpoint, step, module, average, optimizer, settings)

    def validate() -> None:
        if log is None:
            return
        average.swap(module)
        module.eval()
        log.write(step, {f"val/{name}": value for name, value in task.validate().items()})
        module.train()
        average.swap(module)

    module.train()
    batches = task.batches(first, accelerator.process_index, accelerator.num_processes)
    for loaded in batches:
        generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + step) * 1_009 + accelerator.process_index
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        batch = {name: value.to(accelerator.device) for name, value in loaded.items()}
        losses = task.losses(wrapped, batch, generator)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.gradient_clip)
        if norm is None or bool(torch.isfinite(torch.as_tensor(norm))):
            optimizer.step()
            average.update(module, step)
            skipped_in_a_row = 0
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            sums["gradient"] = sums.get("gradient", 0.0) + float(norm or 0.0)
            sums["count"] = sums.get("count", 0.0) + 1
        else:
            skipped, skipped_in_a_row = skipped + 1, skipped_in_a_row + 1
            if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise RuntimeError(
                    f"{skipped_in_a_row} batches in a row gave no finite gradient (step {step}). "
                    "Lower the learning rate, or check the data for NaN."
                )
        step += 1
        bar.update()
        now = time.monotonic()
        if log is not None and (step % config.log_every == 0 or step == config.steps) and sums:
            count = sums.pop("count")
            means = {f"train/{name}": value / count for name, value in sums.items()}
            means |= {
                "train/learning_rate": learning_rate(step - 1, config),
                "train/skipped": skipped,
                "train/steps_per_second": count / max(now - logged, 1e-9),
            }
            log.write(step, means)
            bar.set_postfix({k.split("/")[1]: f"{v:.3f}" for k, v in list(means.items())[:3]})
            sums, logged = {}, now
        if step % config.validate_every == 0 and step < config.steps:
            validate()
        if now - saved > config.checkpoint_seconds:
            save()
            saved = now
    if step > first:
        save()
        validate()
    bar.close()
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    average.swap(module)
    return step >= config.steps
