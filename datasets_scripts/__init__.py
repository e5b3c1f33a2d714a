"""Audio corpora in, datasets of tokens out: preparation, and batches for training on them.

    from datasets_scripts import CodesCollator, prepare_dataset

    prepare_dataset("audiofolder", "my_audio", "my_tokens")

Names are imported when they are first used, so that ``import datasets_scripts`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import tokenizer

if TYPE_CHECKING:
    from datasets_scripts.dataset.batches import (
        CodesCollator,
        LatentsCollator,
        LengthBucketSampler,
        frame_lengths,
    )
    from datasets_scripts.dataset.hub import push_dataset, save_to_disk
    from datasets_scripts.dataset.manifest import Manifest, read_manifest
    from datasets_scripts.dataset.verify import verify_dataset
    from datasets_scripts.preparation.options import Resources, RowOptions
    from datasets_scripts.preparation.prepare import prepare_dataset
    from datasets_scripts.preparation.ray_prepare import prepare_with_ray

# PyPI's `tokenizer` may hide ours: then nothing of ours has run yet, and this is the first place
# that can tell.
if "LatentTokenizer" not in getattr(tokenizer, "__all__", ()):
    raise ImportError(
        f"The package 'tokenizer' at {tokenizer.__file__} is not latent-tokenizer's, which"
        f" {__name__!r} needs. Use a fresh environment (python -m venv), or run `pip uninstall"
        " tokenizer latent-tokenizer` and install latent-tokenizer again."
    )

_EXPORTS = {
    "CodesCollator": "datasets_scripts.dataset.batches",
    "LatentsCollator": "datasets_scripts.dataset.batches",
    "LengthBucketSampler": "datasets_scripts.dataset.batches",
    "Manifest": "datasets_scripts.dataset.manifest",
    "Resources": "datasets_scripts.preparation.options",
    "RowOptions": "datasets_scripts.preparation.options",
    "frame_lengths": "datasets_scripts.dataset.batches",
    "prepare_dataset": "datasets_scripts.preparation.prepare",
    "prepare_with_ray": "datasets_scripts.preparation.ray_prepare",
    "push_dataset": "datasets_scripts.dataset.hub",
    "read_manifest": "datasets_scripts.dataset.manifest",
    "save_to_disk": "datasets_scripts.dataset.hub",
    "verify_dataset": "datasets_scripts.dataset.verify",
}

__all__ = [
    "CodesCollator",
    "LatentsCollator",
    "LengthBucketSampler",
    "Manifest",
    "Resources",
    "RowOptions",
    "frame_lengths",
    "prepare_dataset",
    "prepare_with_ray",
    "push_dataset",
    "read_manifest",
    "save_to_disk",
    "verify_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'datasets_scripts' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
