"""Import paths of earlier versions: each still works, with a warning that names the new path."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "tokenizer.autoencoders.dac": "tokenizer.autoencoders.adapter",
    "tokenizer.autoencoders.encodec": "tokenizer.autoencoders.adapter",
    "tokenizer.autoencoders.oobleck": "tokenizer.autoencoders.adapter",
    "tokenizer.checking": "tokenizer.model.validation",
    "tokenizer.comparison": "tokenizer.evaluation.comparison",
    "tokenizer.comparison.units": "tokenizer.evaluation.comparison.units",
    "tokenizer.core": "tokenizer.model.core",
    "tokenizer.data": "tokenizer.training",
    "tokenizer.demo": "tokenizer.evaluation.demo",
    "tokenizer.inputs": "tokenizer.audio.inputs",
    "tokenizer.loading": "tokenizer.model.loading",
    "tokenizer.losses": "tokenizer.training.losses",
    "tokenizer.metrics": "tokenizer.evaluation.metrics",
    "tokenizer.onnx_runner": "tokenizer.export.onnx_runner",
    "tokenizer.spectral": "tokenizer.networks.spectral",
    "tokenizer.streaming": "tokenizer.model.streaming",
    "tokenizer.training.data": "tokenizer.training",
    "tokenizer.training.loop": "tokenizer.training.config",
    "datasets_scripts.corpora.listing": "datasets_scripts.sources.listing",
    "datasets_scripts.corpora.tables": "datasets_scripts.sources.tables",
    "datasets_scripts.corpora.tree": "datasets_scripts.sources.tree",
    "datasets_scripts.corpus": "datasets_scripts.sources.corpus",
    "datasets_scripts.download": "datasets_scripts.sources.download",
}


class _MovedFinder(MetaPathFinder, Loader):
    """Makes a module for an old path that looks its names up in the new one."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        # The frames of the import machinery do not count: this is the line that imports.
        warnings.warn(f"{module.__name__} has moved to {new}.", DeprecationWarning, stacklevel=2)
        module.__dict__["__getattr__"] = partial(getattr, import_module(new))


def keep_old_paths() -> None:
    """Lets the paths of `MOVED` be imported."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
