"""Checkpoints of a training run: safetensors and JSON, written as a whole or not at all.

With sharded parameters (FSDP2) every process takes part in gathering them, the first one writes,
and every process cuts its shards from what it reads.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.errors import FileError, InputError

FORMAT_VERSION = 1
_SAVING = ".saving-"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what libraries raise for a damaged model, or none, into one ValueError.

    Args:
        name: Of the model; for the message.
    """
    try:
        yield
    except (SafetensorError, TypeError, KeyError, AttributeError, IndexError, MemoryError) as error:
        raise InputError(f"{name} is damaged, or no model of this kind: {error!r}.") from error


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """Gives a folder to save a model in; its files are moved when all are whole.

    Args:
        folder: Where they go; made if it is not there, other files in it stay.

    Raises:
        OSError: If the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_SAVING}*"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as name:
        partial = Path(name)
        try:
            yield partial
        except SafetensorError as error:
            raise FileError(f"Cannot write {folder}: {error}. Is the disk full?") from error
        # The configuration last: without it a folder is no model.
        files = sorted(partial.iterdir(), key=lambda path: path.name == "config.json")
        for file in files:
            # safetensors makes files that nobody else may read.
            file.chmod(files[-1].stat().st_mode)
            file.replace(folder / file.name)


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
        path = new / f"{name}.safetensors"
        try:
            save_file(values, path)
        except SafetensorError as error:
            raise FileError(f"Cannot write {path}: {error}. Is the disk full?") from error
    checksums = {name: _checksum(new / f"{name}.safetensors") for name in tensors}
    state = {"format_version": FORMAT_VERSION, "checksums": checksums, **state}
    (new / "state.json").write_text(json.dumps(state, indent=1))
    # After a kill between the renames the old one is all there is: it stays until the new one has
    # its name.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
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
    try:
        state = json.loads((folder / "state.json").read_text())
        if state.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
            raise InputError("a newer version of this library wrote it")
        changed = [key for key in config if state["config"].get(key) != config[key]]
        wrong = [
            name
            for name, checksum in state.get("checksums", {}).items()
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
    if changed:
        was = {key: state["config"].get(key) for key in changed}
        now = {key: config[key] for key in changed}
        raise InputError(
            f"{folder} was trained with {was}, not {now}. Use the same options, or another --out."
        )
    return folder, state


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc


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
        raise InputError(f"{folder} holds another model; names that differ begin: {differing}.")
    for name, value in parameters.items():
        value.copy_(like(stored[name], value))
        average.values[name].copy_(like(averaged[name], value))
    _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
