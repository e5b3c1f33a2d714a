"""Lets other libraries know classes of ours, e.g. their Auto classes, once both are imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# A module of transformers, and the one of ours that registers what belongs there. Neither is
# imported before it is needed: each takes seconds.
REGISTERED = {
    "transformers.models.auto.configuration_auto": "tokenizer.model.config",
    "transformers.models.auto.modeling_auto": "tokenizer.model.latent_tokenizer",
}


class _Finder(MetaPathFinder):
    """Finds the modules that a class of ours belongs to as usual, and imports ours after them."""

    def __init__(self) -> None:
        self.ours: dict[str, list[str]] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.ours else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                for name in self.ours[fullname]:
                    import_module(name)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def register_when_imported(modules: Mapping[str, str]) -> None:
    """Imports modules of ours (the values) right after modules of libraries (the keys).

    Where the library's is imported already, ours follows at once.
    """
    finder = next((each for each in sys.meta_path if isinstance(each, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    for theirs, ours in modules.items():
        names = finder.ours.setdefault(theirs, [])
        if ours not in names:
            names.append(ours)
        if theirs in sys.modules:
            import_module(ours)


def register_with_auto_classes() -> None:
    """Lets ``AutoModel.from_pretrained`` load tokenizers after ``import tokenizer``."""
    register_when_imported(REGISTERED)
