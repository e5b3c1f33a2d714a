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


def optional_package(name: str, message: str) -> Any:
    """Imports an optional module; without it, MissingPackageError says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(message) from error


class PackageClashError(UserError, ImportError):
    """Another installed distribution owns one of this library's import names."""
