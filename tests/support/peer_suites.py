"""The common test suites of peers, which no wheel brings.

Those of `transformers` are in its source distribution: ``pip download`` fetches that of the
installed version once, into a cache. The suite imports three modules that the distribution leaves
out; classes without tests stand in for them. Those of `diffusers` are in its repository alone.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "latent-tokenizer-tests"
# What the suite imports from tests that are not distributed.
MISSING = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


@cache
def transformers_suite(name: str) -> ModuleType:
    """A module of the common tests of `transformers`; skips the caller's module if there is none.

    Args:
        name: Such as "test_modeling_common".
    """
    pytest.importorskip("parameterized", reason="the suite of transformers needs parameterized")
    package = "transformers_common_tests"
    if package not in sys.modules:
        root = types.ModuleType(package)
        root.__path__ = [str(_source("transformers") / "tests")]
        sys.modules[package] = root
        for path, content in MISSING.items():
            parent, _, leaf = path.partition(".")
            for dotted in (parent, f"{parent}.{leaf}"):
                module = sys.modules[f"{package}.{dotted}"] = types.ModuleType(dotted)
                module.__path__ = []
            vars(module).update(content)
    return importlib.import_module(f"{package}.{name}")


def _source(package: str) -> Path:
    """The unpacked source distribution of the version that is installed."""
    folder = CACHE / f"{package}-{metadata.version(package)}"
    if not (folder / "tests").is_dir():
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                       "--no-binary", ":all:", "--dest", place,
                       f"{package}=={metadata.version(package)}"]  # fmt: skip
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            files = list(Path(place).glob("*.tar.gz"))
            if result.returncode or not files:
                reason = f"the source distribution of {package} cannot be had: {result.stderr}"
                pytest.skip(reason, allow_module_level=True)
            CACHE.mkdir(parents=True, exist_ok=True)
            with tarfile.open(files[0]) as archive:
                archive.extractall(CACHE, filter="data")
            (folder / "tests" / "__init__.py").touch()  # The tests of configurations read it.
    return folder


def leave_out(reasons: Mapping[str, str]) -> Callable[[type], type]:
    """Skips tests of a suite, each with the reason why it does not apply."""

    def apply(suite: type) -> type:
        for name, reason in reasons.items():
            setattr(suite, name, pytest.mark.skip(reason=reason)(getattr(suite, name)))
        return suite

    return apply
