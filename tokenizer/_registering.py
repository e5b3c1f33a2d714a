"""Makes the Auto classes of `transformers` know the tokenizer once both packages are imported."""

from __future__ import annotations

import sys
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


class _AutoFinder(MetaPathFinder):
    """Finds the modules of `REGISTERED` as usual, and imports ours after them."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in REGISTERED else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                import_module(REGISTERED[fullname])

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def register_with_auto_classes() -> None:
    """Lets ``AutoModel.from_pretrained`` load tokenizers after ``import tokenizer``."""
    if not any(isinstance(finder, _AutoFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoFinder())
    for theirs, ours in REGISTERED.items():
        if theirs in sys.modules:
            import_module(ours)
