"""The processes that train together, started by ``accelerate launch``."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from tokenizer.errors import StateError


def _state() -> PartialState:
    # `Accelerator` reads the environment by itself, but uses an existing state.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """False in all but one of the processes that train together."""
    return _state().is_main_process


def training_device() -> torch.device:
    """Where this process trains: its GPU, or the CPU."""
    device = _state().device
    assert device is not None
    return device


def num_processes() -> int:
    """Processes that train together; a RuntimeError, if each of several would train alone."""
    count = _state().num_processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 < started:
        raise StateError(
            f"{started} processes were started, but each would train alone: there are not as many "
            "GPUs. Start them with `accelerate launch --cpu` or in fewer numbers."
        )
    return count
