"""Checkpoints of a training run: safetensors and JSON, written as a whole or not at all.

With sharded parameters (FSDP2) every process takes part in gathering them, the first one writes,
and every process cuts its shards from what it reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name; shared parameters once, frozen ones (text encoders) not at all."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


class WeightAverage:
    """Exponential moving average of the trained parameters.

    The decay grows from 0 with the number of steps, so that the first weights are soon forgotten.

    Args:
        module: Its parameters are averaged.
        decay: Final decay per step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in trained_parameters(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's weights."""
        keep = min(self.decay, (step + 1) / (step + 10))
        for name, value in trained_parameters(module).items():
            self.values[name].lerp_(value.detach(), 1 - keep)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges the module's weights with the average; call twice to undo."""
        for name, value in trained_parameters(module).items():
            current = value.detach().clone()
            value.copy_(self.values[name])
            self.values[name] = current


def whole(value: Any) -> Tensor:
    """A contiguous tensor on the CPU; shards are gathered from all processes."""
    tensor = torch.as_tensor(value).detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    return tensor.cpu().contiguous()


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor on the target's device, cut into shards as the target is."""
    if not hasattr(target, "device_mesh"):
        return value.to(target.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # pyright: ignore
    return distribute_tensor(value.to(target.device), mesh, placements)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": whole(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        # Counters have no shape to share with the parameter.
        restored = like(value, parameters[int(index)]) if value.ndim else value
        state.setdefault(int(index), {})[name] = restored
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(
    folder: Path,
    state: dict[str, Any],
    module: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Writes ``folder`` as a whole or not at all.

    Args:
        folder: Of the checkpoint; replaced.
        state: JSON values: the step, the configuration.
        module: Its trained parameters are stored; buffers are constants of the model.
        average: Stored too.
        optimizer: Stored too.
        write: False in all processes but one, which only help to gather shards.
    """
    tensors = {
        "module": {name: whole(value) for name, value in trained_parameters(module).items()},
        "average": {name: whole(value) for name, value in average.values.items()},
        "optimizer": _optimizer_tensors(optimizer),
    }
    if not write:
        return
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, values in tensors.items():
        save_file(values, new / f"{name}.safetensors")
    (new / "state.json").write_text(json.dumps(state, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path, config: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Finds the checkpoint to go on from: its folder and its state; None if there is none.

    Raises:
        ValueError: If it was made with another configuration.
    """
    if not folder.exists():
        # A kill between the two renames of `save_checkpoint` leaves the previous one under this
        # name.
        folder = folder.with_name(folder.name + ".old")
        if not folder.exists():
            return None
    state = json.loads((folder / "state.json").read_text())
    changed = [key for key in config if state["config"].get(key) != config[key]]
    if changed:
        was = {key: state["config"].get(key) for key in changed}
        now = {key: config[key] for key in changed}
        raise ValueError(
            f"{folder} was trained with {was}, not {now}. Use the same options, or another --out."
        )
    return folder, state


@torch.no_grad()
def load_checkpoint(
    folder: Path, module: nn.Module, average: WeightAverage, optimizer: torch.optim.Optimizer
) -> None:
    """Restores in place what `save_checkpoint` wrote.

    Raises:
        ValueError: If the checkpoint has other parameters than the module.
    """
    stored = load_file(folder / "module.safetensors")
    averaged = load_file(folder / "average.safetensors")
    parameters = trained_parameters(module)
    if stored.keys() != parameters.keys() or averaged.keys() != parameters.keys():
        differing = sorted(stored.keys() ^ parameters.keys())[:5]
        raise ValueError(f"{folder} holds another model; names that differ begin: {differing}.")
    for name, value in parameters.items():
        value.copy_(like(stored[name], value))
        average.values[name].copy_(like(averaged[name], value))
    _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
