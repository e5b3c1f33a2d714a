"""Errors that the user can mend: the command lines print their message as one line.

Each is also the built-in exception that Python code expects, so ``except ValueError`` works.
Everything else that is raised is a bug of this library and keeps its traceback.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class UserError(Exception):
    """The message says what is wrong and what to do about it."""


class InputError(UserError, ValueError):
    """A value, a file's content or a combination of options that cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class FileError(UserError, OSError):
    """A file that cannot be read or written."""


class StateError(UserError, RuntimeError):
    """A call at the wrong time, or work that cannot continue."""


class MissingPackageError(UserError, ImportError):
    """An optional package that is not installed."""


def import_extra(name: str, purpose: str, extra: str) -> Any:
    """A module of an optional package; raises MissingPackageError with the way to install it.

    Args:
        name: Of the module.
        purpose: What needs it; begins the message.
        extra: Of this distribution, which brings the package.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(
            f'{purpose} needs {package}: pip install "latent-tokenizer[{extra}]" ({error}).'
        ) from error


class PackageClashError(UserError, ImportError):
    """Another installed distribution owns one of this library's import names."""
