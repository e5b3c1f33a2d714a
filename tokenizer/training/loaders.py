"""How many processes read training data, and how batches wait for their device."""

from __future__ import annotations

import os
from typing import Any

import torch

from tokenizer.devices import available_cores

# Workers of a training process with a GPU, if the machine has cores for more.
MOST_WORKERS = 16
# Batches that each worker has ready for a GPU, which takes them in bursts.
_PREFETCHED = 4


def loader_options(num_workers: int | None, device: torch.device) -> dict[str, Any]:
    """Arguments of the ``DataLoader`` of a training process.

    Without a number of workers there is one on a CPU, whose cores the training itself needs. With a
    GPU each of the machine's training processes gets its share of the cores.
    """
    on_gpu = device.type == "cuda"
    if num_workers is None:
        share = available_cores() // _local_processes()
        num_workers = min(max(share, 1), MOST_WORKERS) if on_gpu else 1
    # A GPU copies by itself from pinned memory only.
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": on_gpu}
    return options | ({"prefetch_factor": _PREFETCHED} if on_gpu and num_workers else {})


def _local_processes() -> int:
    # Set by every launcher of torch.
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
