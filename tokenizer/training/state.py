"""What a run consists of besides its data, and how it is kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.model.checkpoint import module_bytes
from tokenizer.saving import storing

FORMAT_VERSION = 1


def weights_digest(module: nn.Module) -> str:
    """Sixteen hex digits of a module's weights: where a run begins is a part of what it is."""
    return hashlib.sha256(module_bytes(module)).hexdigest()[:16]


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
        scaler: Of float16's losses, if the run has one.
        step: Steps taken.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    adversary: nn.Module | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
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
    checksums = {}
    for name, tensors in state.files().items():
        path = new / f"{name}.safetensors"
        with storing(path):
            save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        checksums[name] = _checksum(path)
    described: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "checksums": checksums,
    }
    if state.scaler is not None:
        described["scaler"] = state.scaler.state_dict()
    (new / "state.json").write_text(json.dumps(described | {"config": config}, indent=1))
    # After a kill between the renames the old one is all there is: it stays until the new one has
    # its name.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, state: State, config: dict[str, Any]) -> None:
    """Restores everything in place; changes nothing if there is no checkpoint.

    Raises:
        ValueError: If the checkpoint was made with another configuration, or is damaged.
    """
    if not folder.exists():
        # A kill between the two renames of `save_checkpoint` leaves the previous one under this
        # name.
        folder = folder.with_name(folder.name + ".old")
        if not folder.exists():
            return
    saved = _read_state(folder)
    changed = [key for key in config if saved["config"].get(key) != config[key]]
    if changed:
        was = {key: saved["config"].get(key) for key in changed}
        now = {key: config[key] for key in changed}
        raise InputError(
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
    if state.scaler is not None and saved.get("scaler"):
        state.scaler.load_state_dict(saved["scaler"])
    state.step = saved["step"]


def _read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint whose files are what they were when it was written."""
    try:
        saved = json.loads((folder / "state.json").read_text())
        if saved.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
            raise InputError("a newer version of this library wrote it")
        if not isinstance(saved["config"], dict) or not isinstance(saved["step"], int):
            raise InputError("its state.json is none")
        wrong = [
            name
            for name, checksum in saved.get("checksums", {}).items()
            if _checksum(folder / f"{name}.safetensors") != checksum
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
    return saved


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc
