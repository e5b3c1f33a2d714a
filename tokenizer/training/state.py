"""What a run consists of besides its data, and how it is kept on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


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


@dataclass
class State:
    """Everything that a checkpoint holds.

    Attributes:
        module: What is trained.
        optimizer: Its optimizer.
        average: Its averaged weights, which are what the run delivers.
        adversary: Discriminators, if the run has any.
        adversary_optimizer: Theirs.
        step: Steps taken.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    adversary: nn.Module | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None
    step: int = 0

    def files(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by the name of the file that they are kept in."""
        files = {
            "module": dict(self.module.state_dict()),
            "average": self.average.values,
            "optimizer": _optimizer_tensors(self.optimizer),
        }
        if self.adversary is not None and self.adversary_optimizer is not None:
            files["adversary"] = dict(self.adversary.state_dict())
            files["adversary_optimizer"] = _optimizer_tensors(self.adversary_optimizer)
        return files


def save_checkpoint(folder: Path, state: State, config: dict[str, Any]) -> None:
    """Writes ``folder`` as a whole or not at all: safetensors and JSON, no pickles."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, tensors in state.files().items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, new / f"{name}.safetensors")
    (new / "state.json").write_text(json.dumps({"step": state.step, "config": config}, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, state: State, config: dict[str, Any]) -> None:
    """Restores everything in place; changes nothing if there is no checkpoint.

    Raises:
        ValueError: If the checkpoint was made with another configuration.
    """
    if not folder.exists():
        # A kill between the two renames of `save_checkpoint` leaves the previous one under this
        # name.
        folder = folder.with_name(folder.name + ".old")
        if not folder.exists():
            return
    saved = json.loads((folder / "state.json").read_text())
    changed = [key for key in config if saved["config"].get(key) != config[key]]
    if changed:
        was = {key: saved["config"].get(key) for key in changed}
        now = {key: config[key] for key in changed}
        raise ValueError(
            f"{folder} was trained with {was}, not {now}. Use the same options, or another --out."
        )
    state.module.load_state_dict(load_file(folder / "module.safetensors"))
    state.average.values = load_file(folder / "average.safetensors")
    for name, value in state.module.state_dict().items():
        state.average.values[name] = state.average.values[name].to(value.device)
    _restore_optimizer(state.optimizer, load_file(folder / "optimizer.safetensors"))
    if state.adversary is not None and state.adversary_optimizer is not None:
        state.adversary.load_state_dict(load_file(folder / "adversary.safetensors"))
        tensors = load_file(folder / "adversary_optimizer.safetensors")
        _restore_optimizer(state.adversary_optimizer, tensors)
    state.step = saved["step"]
