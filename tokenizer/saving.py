"""How files are written: under a temporary name beside the final one, which they get when whole.

Nobody ever sees half a file, an error leaves what was there before, and the content is on the disk
(``fsync``) before the name is. A process that is killed leaves a hidden ``.NAME.partial``, which
the next one that writes NAME removes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tokenizer.errors import ExistingFileError, FileError, InputError, MissingFileError, StateError

if TYPE_CHECKING:  # Code files are written without torch.
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and what killed processes left stays.
    fcntl = None

_SAVING, _OLD = ".saving-", ".old"
_DESCRIPTIONS = ("config.json", "onnx.json")
_BLOCK = 2**20
# What transformers and diffusers call weights, in one or several files, and their index.
_OWN_WEIGHTS = re.compile(r"(\w*model)(\.\w+)?(-\d+-of-\d+)?\.safetensors(\.index(\.\w+)?\.json)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What transformers, diffusers and torch raise for a model that is damaged or none.
_UNREADABLE = (
    TypeError, KeyError, IndexError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip


def check_target(path: str | Path) -> Path:
    """The path without links; refuses a file that cannot be written, best before hours of work."""
    target = Path(path).resolve()
    if target.is_dir():
        raise InputError(f"Cannot write {path}: it is a folder. Name a file in it.")
    if not target.parent.is_dir():
        raise MissingFileError(f"Cannot write {path}: make the folder {target.parent} first.")
    return target


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to; the file gets its own name when the block ends without error.

    Devices and named pipes are written directly. The temporary path has another suffix: name the
    format to libraries that go by it. OSError if the file cannot be written.
    """
    target = check_target(path)
    if target.exists() and not target.is_file():
        yield target
        return
    try:
        partial, stream = _create_partial(target)
    except OSError as error:
        raise FileError(f"Cannot write {path}: {error.strerror}.") from error
    with stream:
        try:
            with _disk_errors(target):
                yield partial
            publish(partial, target, os.fstat(stream.fileno()).st_mode)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def run_folder(folder: str | Path) -> Iterator[Path]:
    """Makes the folder of a run, which no other run uses meanwhile, and sweeps it.

    RuntimeError if a living process works in it; the lock of a dead one counts for nothing. Of
    processes that train together the first has the lock.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ExistingFileError(f"{folder} is a file: name a folder.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")):
        yield folder
        return
    lock = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        if _lock(lock) is False:
            raise StateError(f"Another run works in {folder}: wait for it, or name another folder.")
        for left in [*folder.rglob(".*.partial"), *folder.rglob(f"{_SAVING}*")]:
            if left.is_dir():  # by a process that was killed
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
        yield folder
    finally:
        if lock >= 0:
            os.close(lock)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # Nothing was written.


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, in UTF-8; errors as `writing`."""
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, with one space of indentation; errors as `writing`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file of tensors, made contiguous; errors as `writing`."""
    from safetensors.torch import save_file

    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    with writing(path) as partial:
        save_file(contiguous, partial, metadata)


@contextmanager
def writing_files(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder; its files are moved into ``folder`` when the block ends without error.

    Files of other names stay. The description is moved last: without it a folder is no model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_SAVING}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as name:
        new = Path(name)
        with _disk_errors(folder):
            yield new
        probe = new / _SAVING
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        for file in sorted(new.iterdir(), key=lambda path: path.name in _DESCRIPTIONS):
            publish(file, folder / file.name, mode)


@contextmanager
def writing_folder(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder; it takes the place of ``folder`` when the block ends without error.

    After a kill between two renames the previous folder is there under another name:
    `whole_folder` finds it.
    """
    folder = Path(folder)
    old, new = folder.with_name(folder.name + _OLD), folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with _disk_errors(folder):
            yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def whole_folder(folder: str | Path) -> Path | None:
    """Where the content that `writing_folder` wrote last is; None if it never wrote any."""
    folder = Path(folder)
    places = (folder, folder.with_name(folder.name + _OLD))
    return next((path for path in places if path.exists()), None)


def save_pretrained(save: Callable[..., Any], folder: str | Path, **options: Any) -> None:
    """Saves a model by a bound ``save_pretrained`` of transformers or diffusers, as a whole.

    Options that are None have the library's default.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("push_to_hub"):  # The folder that ``save`` sees has a temporary name.
        options.setdefault("repo_id", Path(folder).name)
    with writing_files(folder) as new, _no_bars():
        save(new, **options)
        written = {file.name for file in new.iterdir()}
    # One file of weights beside several, or more of them than before: loading would mix them.
    replaced = {_weights_of(name) for name in written} - {None}
    for old in Path(folder).iterdir():
        if old.name not in written and _weights_of(old.name) in replaced:
            old.unlink()


def _weights_of(name: str) -> tuple[str, str | None] | None:
    """What a file holds weights of: a model and its variant, e.g. ".fp16"; None if it has none."""
    match = _OWN_WEIGHTS.fullmatch(name)
    return (match[1], match[2] or match[5]) if match else None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keeps transformers from showing bars for the files of a model, which take no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def damage_named(name: str, kind: str) -> Iterator[None]:
    """Turns what a library raises for a model that is damaged into a ValueError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *_UNREADABLE) as error:
        # A model may come from anywhere, and the libraries do not validate its files. A missing
        # package or too little memory is not the model's fault: those errors pass.
        raise InputError(f"{name} is damaged, or not a {kind}: {error!r}.") from error


def load_pretrained(
    load: Callable[..., Any], name: str, kind: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model and its loading info, by a bound ``from_pretrained`` of transformers or diffusers.

    ValueError, which says what ``kind`` of model it should be, if the weights do not fit the
    configuration, or either is damaged.
    """
    with damage_named(name, kind), _no_bars():
        options |= {"output_loading_info": True, "use_safetensors": True}
        model, info = load(name, **options)
    wrong = {
        what: sorted(map(str, info[what]))
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if info.get(what)
    }
    if wrong:
        raise InputError(f"The weights in {name} do not fit its config.json: {wrong}.")
    # Files are mapped into memory at unaligned addresses, where matrix products can differ in their
    # last bits. Copies are aligned like the weights of the model that was saved.
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.clone()
    return model, info


def checksum(path: str | Path) -> int:
    """CRC-32 of a file's content."""
    crc = 0
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def damaged(file: str | Path, error: Exception) -> InputError:
    """The error to raise for a safetensors file that cannot be read."""
    return InputError(f"{file} is damaged or cut off ({error}): fetch or make it again.")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns safetensors' error for a full disk, which is a bare Exception, into an OSError."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL and not error.filename
        if not full and type(error).__name__ != "SafetensorError":  # By name: its import is slow.
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"Cannot write {path}: {reason}. Is the disk full?") from error


@contextmanager
def dataset_errors(name: str | Path) -> Iterator[None]:
    """Turns the error of `datasets` for rows that it cannot read or cache into an OSError."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "DatasetGenerationError":  # By name: its import is slow.
            raise
        reason = error.__cause__ or error
        raise FileError(f"`datasets` cannot read {name} into its cache: {reason}.") from error


def _create_partial(target: Path) -> tuple[Path, IO[bytes]]:
    """A new file to write what becomes the target; the lock on it tells that it is in use."""
    for middle in ("", *(f".{secrets.token_hex(4)}" for _ in range(9))):
        partial = target.with_name(f".{target.name}{middle}.partial")
        with suppress(FileNotFoundError), partial.open("rb") as left:
            if _lock(left.fileno()):
                partial.unlink()  # A process that was killed left it.
        with suppress(FileExistsError):
            stream = partial.open("xb")
            if _lock(stream.fileno()) is not False and partial.exists():
                return partial, stream
            stream.close()  # Another process took it for left over.
    raise FileExistsError(errno.EEXIST, "too many processes write it")


def _lock(descriptor: int) -> bool | None:
    """Locks a file until it is closed or its process ends; False if another one has locked it.

    None where nothing can be locked.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        pass
    return None


def publish(partial: Path, target: Path, mode: int | None = None) -> None:
    """Gives a file that is whole its name, when its content is on the disk."""
    _flush(partial)
    if mode is not None:
        partial.chmod(mode)  # Safetensors makes files that nobody else may read.
    partial.replace(target)


def _flush(path: Path) -> None:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
