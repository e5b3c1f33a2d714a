"""Devices by name."""

from __future__ import annotations

import torch

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
