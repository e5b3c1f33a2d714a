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
    from datasets_scripts.batches import (
        CodesCollator,
        LatentsCollator,
        LengthBucketSampler,
        frame_lengths,
    )
    from datasets_scripts.hub import push_dataset, save_to_disk
    from datasets_scripts.manifest import Manifest, read_manifest
    from datasets_scripts.options import Resources, RowOptions
    from datasets_scripts.prepare import prepare_dataset
    from datasets_scripts.ray_prepare import prepare_with_ray
    from datasets_scripts.verify import verify_dataset

# PyPI's `tokenizer` may hide ours: then nothing of ours has run yet, and this is the first place
# that can tell.
if "LatentTokenizer" not in getattr(tokenizer, "__all__", ()):
    raise ImportError(
        f"The package 'tokenizer' at {tokenizer.__file__} is not latent-tokenizer's, which"
        f" {__name__!r} needs. Use a fresh environment (python -m venv), or run `pip uninstall"
        " tokenizer latent-tokenizer` and install latent-tokenizer again."
    )

_EXPORTS = {
    "CodesCollator": "datasets_scripts.batches",
    "LatentsCollator": "datasets_scripts.batches",
    "LengthBucketSampler": "datasets_scripts.batches",
    "Manifest": "datasets_scripts.manifest",
    "Resources": "datasets_scripts.options",
    "RowOptions": "datasets_scripts.options",
    "frame_lengths": "datasets_scripts.batches",
    "prepare_dataset": "datasets_scripts.prepare",
    "prepare_with_ray": "datasets_scripts.ray_prepare",
    "push_dataset": "datasets_scripts.hub",
    "read_manifest": "datasets_scripts.manifest",
    "save_to_disk": "datasets_scripts.hub",
    "verify_dataset": "datasets_scripts.verify",
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
