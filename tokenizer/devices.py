"""Devices by name, and what is brought to them without waiting for them."""

from __future__ import annotations

import os

import torch
from torch import Generator, Tensor

from tokenizer.errors import InputError


def device_of(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: As torch writes it: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ValueError: If there is no such device here, or it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    # torch built without CUDA raises an AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"Device {name!r} cannot be used here ({reason}). Try cpu.") from None
    return device


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; a GPU copies it while the host goes on."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # From other memory the copy would be waited for.
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def generator_on(device: torch.device, generator: Generator) -> Generator:
    """A generator that draws on the device, seeded by a draw of ``generator``.

    If that belongs to the device, it is ``generator`` itself.
    """
    if device == generator.device:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return Generator(device).manual_seed(seed)
