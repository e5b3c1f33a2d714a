"""Checkpoints of a training run: safetensors and JSON, written as a whole or not at all.

With sharded parameters (FSDP2) all processes gather them, and cut their shards from what they read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.model.checkpoint import module_bytes
from tokenizer.saving import checksum, save_tensors, whole_folder, writing_folder

FORMAT_VERSION = 1
# Of discriminators: the steps of the run, which the state says too.
_FORMER_BUFFERS = {"steps"}


def weights_digest(module: nn.Module) -> str:
    """Sixteen hex digits of a module's weights, which identify where a run started."""
    return hashlib.sha256(module_bytes(module)).hexdigest()[:16]


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with gradients by name: shared ones once, frozen ones not at all."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a module: trained parameters and persistent buffers."""
    saved = module.state_dict(keep_vars=True)
    buffers = {name: v for name, v in saved.items() if not isinstance(v, nn.Parameter)}
    return {**trained_parameters(module), **buffers}


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only, for a module that trains on this device."""
    parameters = list(trained_parameters(module).values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One kernel for many tensors on a GPU; a CPU keeps torch's default.
    fused = True if device is not None and device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=fused)


class WeightAverage:
    """Exponential moving average of a module's trained parameters and floating-point buffers.

    The decay per step grows from 0, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in trained_tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the module's weights."""
        keep = min(self.decay, (step + 1) / (step + 10))
        tensors = trained_tensors(module)
        floating = [name for name, value in tensors.items() if value.is_floating_point()]
        averages, values = ([each[name] for name in floating] for each in (self.values, tensors))
        # One kernel for many tensors on a GPU.
        torch._foreach_lerp_(averages, values, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]
        for name in tensors.keys() - set(floating):
            self.values[name].copy_(tensors[name])

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges the module's weights with the average; call twice to undo."""
        for name, value in trained_tensors(module).items():
            current = value.detach().clone()
            value.copy_(self.values[name])
            self.values[name] = current


@dataclass
class TrainingState:
    """Everything that a checkpoint holds; adversary and scaler (of float16) if the run has any."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    adversary: nn.Module | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    step: int = 0

    def files(self) -> dict[str, dict[str, Tensor]]:
        """Whole tensors on the CPU, by the name of the file that they are kept in."""
        files = {
            "module": trained_tensors(self.module),
            "average": self.average.values,
            "optimizer": _optimizer_tensors(self.optimizer),
        }
        if self.adversary is not None and self.adversary_optimizer is not None:
            files["adversary"] = trained_tensors(self.adversary)
            files["adversary_optimizer"] = _optimizer_tensors(self.adversary_optimizer)
        return {file: {k: whole(v) for k, v in values.items()} for file, values in files.items()}


def whole(value: Any) -> Tensor:
    """A contiguous tensor on the CPU; shards are gathered from all processes."""
    tensor = torch.as_tensor(value).detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
    return tensor.cpu().contiguous()


def _like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor on the target's device, cut into shards as the target is."""
    if not hasattr(target, "device_mesh"):
        return value.to(target.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # pyright: ignore
    return distribute_tensor(value.to(target.device), mesh, placements)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        # Counters of steps do not have the parameter's shape.
        restored = _like(value, parameters[int(index)]) if value.ndim else value
        state.setdefault(int(index), {})[name] = restored
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_checkpoint(
    folder: Path, state: TrainingState, settings: dict[str, Any], *, write: bool = True
) -> None:
    """Writes ``folder`` as a whole or not at all (an OSError, if the disk is full).

    Settings are JSON values that a resumed run must share. Processes that do not ``write`` only
    help to gather shards.
    """
    files = state.files()
    if not write:
        return
    with writing_folder(folder) as new:
        for name, tensors in files.items():
            save_tensors(new / f"{name}.safetensors", tensors)
        described: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "checksums": {name: checksum(new / f"{name}.safetensors") for name in files},
        }
        if state.scaler is not None:
            described["scaler"] = state.scaler.state_dict()
        described |= {"config": settings}
        described["checksum"] = _checksum_of(described)
        (new / "state.json").write_text(json.dumps(described, indent=1))


def _checksum_of(described: dict[str, Any]) -> int:
    """Of JSON values, whatever the order of their names."""
    return zlib.crc32(json.dumps(described, sort_keys=True).encode())


@torch.no_grad()
def load_checkpoint(folder: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Restores what `save_checkpoint` wrote in place; changes nothing if there is no checkpoint.

    Raises:
        ValueError: If the checkpoint has other settings, holds another model, or is damaged.
    """
    found = whole_folder(folder)
    if found is None:
        return
    saved = _read_state(found)
    before = saved["config"]
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        was, now = ({key: values.get(key) for key in changed} for values in (before, settings))
        raise InputError(
            f"{found} was trained with {was}, not {now}. Use the same options, or another --out."
        )
    _restore(found / "module.safetensors", state.module)
    _restore(found / "average.safetensors", state.module, state.average.values)
    _restore_optimizer(state.optimizer, load_file(found / "optimizer.safetensors"))
    if state.adversary is not None and state.adversary_optimizer is not None:
        _restore(found / "adversary.safetensors", state.adversary)
        tensors = load_file(found / "adversary_optimizer.safetensors")
        _restore_optimizer(state.adversary_optimizer, tensors)
    if state.scaler is not None and saved.get("scaler"):
        state.scaler.load_state_dict(saved["scaler"])
    state.step = saved["step"]


def load_average(folder: Path, module: nn.Module) -> None:
    """Puts a checkpoint's averaged weights into a module that is not sharded.

    Raises:
        ValueError: If there is no checkpoint, or it holds another model.
    """
    found = whole_folder(folder)
    if found is None:
        raise InputError(f"There is no checkpoint in {folder}: train first.")
    _restore(found / "average.safetensors", module)


@torch.no_grad()
def _restore(path: Path, module: nn.Module, values: dict[str, Tensor] | None = None) -> None:
    """Copies a file's tensors into a module, or into ``values`` that belong to its names."""
    stored = {k: v for k, v in load_file(path).items() if k not in _FORMER_BUFFERS}
    targets = trained_tensors(module) if values is None else values
    # Checkpoints of earlier versions may lack buffers, or hold parameters that are frozen.
    differing = trained_parameters(module).keys() - stored.keys()
    differing |= stored.keys() - module.state_dict().keys()
    if differing:
        raise InputError(f"{path} holds another model; names that differ: {sorted(differing)[:5]}.")
    for name in targets.keys() & stored.keys():
        if stored[name].shape != targets[name].shape:
            raise InputError(
                f"{path} holds another model: {name} has shape {list(stored[name].shape)}, not "
                f"{list(targets[name].shape)}."
            )
        targets[name].copy_(_like(stored[name], targets[name]))


def _read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint whose files have the checksums that it names."""
    try:
        saved = json.loads((folder / "state.json").read_text())
        if saved.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
            raise InputError("a newer version of this library wrote it")
        if not isinstance(saved["config"], dict) or not isinstance(saved["step"], int):
            raise InputError("its state.json has no config or no step")
        # A step that was changed would end a run, or lengthen it. Older runs have no checksum.
        if saved.pop("checksum", None) not in (None, _checksum_of(saved)):
            raise InputError("the checksum of its state.json is wrong")
        wrong = [
            name
            for name, crc in saved.get("checksums", {}).items()
            if checksum(folder / f"{name}.safetensors") != crc
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise InputError(
            f"The checkpoint in {folder} cannot be read ({error}): remove it to start again."
        ) from error
    if wrong:
        raise InputError(
            f"The checkpoint in {folder} is damaged (wrong checksum: {', '.join(wrong)}): remove it"
            " to start again."
        )
    # Runs of version 0.1 named the items of a step differently, or not at all.
    config = saved["config"]
    items = config.pop("crops_per_step", None)
    if items is None and "batch_size" in config:
        items = config.pop("batch_size") * config.pop("accumulate", 1)
    if items is not None:
        config["items_per_step"] = items
    return saved
