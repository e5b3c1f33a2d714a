"""Whatever the user has, as audio sources: files, bytes, arrays, `datasets` rows, batches of these.

`open_audio` takes one of these forms, `open_batch` several:

* a path; the bytes of an audio file; a binary stream such as ``sys.stdin`` (copied to a temporary
  file first);
* a NumPy array, torch tensor or list of numbers, ``[N]`` or ``[C, N]``: floats are taken as they
  are, int16, int32 and uint8 are scaled to [-1, 1);
* a mapping, among others a row of a `datasets.Dataset`. The first of these keys that is there and
  not None counts: ``audio`` (any of these forms), ``array`` with ``sampling_rate``, ``bytes``,
  ``path``, ``file``;
* torchcodec's ``AudioDecoder``, known by its methods, so that torchcodec need not be installed.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from tokenizer.audio.source import BLOCK_LENGTH, AudioSource, check_rate
from tokenizer.audio.truncation import find_cut
from tokenizer.errors import InputError, MissingFileError, StateError

READABLE = "WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF and what else libsndfile decodes"
# Limits, which can be changed here. A file of a few bytes may claim to have 1,024 channels, and a
# block of those is a quarter of a GiB.
MAX_CHANNELS = 64

# What a mapping is read from, first come, first served.
_COLUMNS = ("audio", "array", "bytes", "path", "file")


@dataclass(frozen=True)
class _Request:
    target_rate: int
    sampling_rate: Any
    downmix: bool
    where: str = ""  # " (item 3 of the batch)"


def open_audio(
    value: Any, *, target_rate: int, sampling_rate: float | int | None = None, downmix: bool = False
) -> AudioSource:
    """Opens one piece of audio in any of the forms above.

    Args:
        value: The audio.
        target_rate: Hz that the source shall have.
        sampling_rate: Hz of a bare array. Audio that knows its own rate does not need it, and may
            not contradict it.
        downmix: Whether to average the channels into one.

    Returns:
        A source that can be read again and again. Arrays are not copied: leave them unchanged
        while it is in use.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not audio, holds no samples, has an impossible shape or type, or its
            rate is not known. Samples are checked as they are read.
    """
    return _open(value, _Request(target_rate, sampling_rate, downmix))


def is_batch(value: Any) -> bool:
    """Whether `value` is for `open_batch` rather than `open_audio`.

    Batches are

    * a list or tuple, unless it holds plain numbers: those are the samples of one signal;
    * a NumPy array of strings or objects;
    * a mapping of columns, as ``Dataset.map(batched=True)`` hands over: it is a `LazyBatch`, or its
      ``sampling_rate`` is a list, or its ``audio``, ``bytes``, ``path`` or ``file`` is a batch as
      above, or its ``array`` has more than two axes. (``array`` as a list of lists with one
      sampling rate is one signal ``[C, N]``.)
    """
    if isinstance(value, (list, tuple)):
        return len(value) == 0 or _axes(value) != 1
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "OUT" and value.ndim == 1
    if not isinstance(value, Mapping):
        return False
    # By name: `datasets` is optional, and importing it takes seconds.
    kinds = {kind.__name__ for kind in type(value).__mro__}
    if kinds & {"LazyBatch", "LazyRow"}:
        return "LazyBatch" in kinds
    if _is_column(value.get("sampling_rate")):
        return True
    key = _key(value)
    if key == "array":
        return (_axes(value[key]) or 0) > 2
    return key is not None and is_batch(value[key])


def open_batch(
    value: Any,
    *,
    target_rate: int,
    sampling_rate: Any = None,
    downmix: bool = False,
) -> list[AudioSource]:
    """Opens every item of a batch (see `is_batch`).

    Args:
        value: The batch.
        target_rate: Hz that the sources shall have.
        sampling_rate: Hz of bare arrays: one for all, or one for each (None where it is known).
        downmix: Whether to average the channels of each into one.

    Returns:
        One source per item.

    Raises:
        FileNotFoundError: As `open_audio`.
        ValueError: As `open_audio`; also if there are not as many rates as items, or columns of a
            mapping differ in length.
    """
    items = _rows(value) if isinstance(value, Mapping) else list(value)
    rates = list(sampling_rate) if _is_column(sampling_rate) else [sampling_rate] * len(items)
    if len(rates) != len(items):
        raise InputError(
            f"{len(rates)} sampling rates were given for {len(items)} pieces of audio."
        )
    return [
        _open(item, _Request(target_rate, rate, downmix, f" (item {i} of the batch)"))
        for i, (item, rate) in enumerate(zip(items, rates, strict=True))
    ]


def _open(value: Any, request: _Request) -> AudioSource:
    if isinstance(value, (str, Path)):
        return _open_path(Path(value), request)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _open_file(bytes(value), f"the audio's bytes{request.where}", request)
    if isinstance(value, Mapping):
        return _open_row(value, request)
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        known = replace(request, sampling_rate=_agree(samples.sample_rate, request))
        return _open_array(samples.data, known)
    if isinstance(value, (np.ndarray, Tensor)):
        return _open_array(value, request)
    if isinstance(value, (list, tuple)):
        if is_batch(value) and _axes(value) is None:
            raise InputError(
                f"A batch cannot be one piece of audio{request.where}: {_short(value)}"
            )
        return _open_array(value, request)
    if hasattr(value, "read"):
        return _open_stream(value, f"the stream{request.where}", request)
    raise InputError(
        f"Cannot read audio from {_short(value)}{request.where}: expected a path, bytes, an array, "
        '{"array", "sampling_rate"}, {"path", "bytes"} or a datasets row.'
    )


def _open_row(row: Mapping[str, Any], request: _Request) -> AudioSource:
    key = _key(row)
    if key is None:
        raise InputError(
            f"There is no audio in {sorted(map(str, row))}{request.where}: expected a value under "
            f"{', '.join(map(repr, _COLUMNS))}."
        )
    value = row[key]
    if key == "bytes":
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise InputError(f"'bytes' holds {_short(value)}{request.where}, not bytes.")
        path = row.get("path")
        name = str(path) if path else f"the audio's bytes{request.where}"
        return _open_file(bytes(value), name, request)
    if key in ("path", "file"):
        if not isinstance(value, (str, Path)):
            raise InputError(f"{key!r} holds {_short(value)}{request.where}, not a path.")
        return _open_path(Path(value), request)
    # A file's header is believed before a column of the dataset; a bare array has nothing else.
    rate = row.get("sampling_rate")
    if rate is not None and (key == "array" or _axes(value) is not None):
        request = replace(request, sampling_rate=_agree(rate, request))
    return _open_array(value, request) if key == "array" else _open(value, request)


def _open_path(path: Path, request: _Request) -> AudioSource:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an audio file.")
    if not path.exists():
        raise MissingFileError(f"No such file: {path}")
    if path.is_file():
        return _open_file(path, str(path), request)
    with path.open("rb") as stream:  # A pipe, such as /dev/stdin, can be read only once.
        return _open_stream(stream, str(path), request)


def _open_stream(stream: Any, name: str, request: _Request) -> AudioSource:
    descriptor, copy = tempfile.mkstemp(prefix="latok-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Text streams such as sys.stdin wrap the binary one that is needed.
            shutil.copyfileobj(getattr(stream, "buffer", stream), file)
        source = _open_file(Path(copy), name, request)
    except TypeError as error:
        Path(copy).unlink()
        raise InputError(f"{name} does not give bytes: open it in binary mode.") from error
    except BaseException:
        Path(copy).unlink()
        raise
    weakref.finalize(source, Path(copy).unlink, missing_ok=True)
    return source


def _open_file(file: Path | bytes, name: str, request: _Request) -> AudioSource:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size == 0:
        raise InputError(f"{name}: the file is empty (0 bytes).")
    with _open_sound(file, name) as sound:
        rate, num_channels, frames = sound.samplerate, sound.channels, sound.frames
    if frames == 0:
        raise InputError(f"{name} holds no samples.")
    if num_channels > MAX_CHANNELS:
        raise InputError(
            f"{name} has {num_channels} channels; at most {MAX_CHANNELS} are read. Is its header "
            "damaged?"
        )
    _agree(rate, request, name)

    def decode() -> Iterator[np.ndarray]:
        with _open_sound(file, name) as sound:
            if (sound.samplerate, sound.channels) != (rate, num_channels):
                raise StateError(f"{name} was replaced by another file while it was in use.")
            num_read = 0
            while len(block := _read_block(sound, name)):
                num_read += len(block)
                yield block.T
        # Last, so that whoever keeps what precedes the damage has it by now.
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            cut = find_cut(stream, sound.format, frames, num_read)
        if cut is not None:
            raise InputError(f"{name} is cut off: {cut}. Copy it again.")

    return AudioSource(
        decode,
        name=name,
        source_rate=rate,
        target_rate=request.target_rate,
        num_channels=num_channels,
        downmix=request.downmix,
    )


class _Sound(soundfile.SoundFile):
    """A sound file that is only read forward."""

    def seekable(self) -> bool:
        # Else soundfile seeks to where it is after every read, and near the end of an Opus file
        # libsndfile then goes on with wrong samples.
        return False


def _open_sound(file: Path | bytes, name: str) -> soundfile.SoundFile:
    try:
        return _Sound(io.BytesIO(file) if isinstance(file, bytes) else file)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(". ")
    except TypeError:
        # soundfile asks for a rate where it sees the suffix .raw.
        reason = "a .raw file has no header that tells its rate and encoding"
    if isinstance(file, Path):
        # Not libsndfile's "System error" where access is denied, or the file has gone meanwhile.
        file.open("rb").close()
    raise InputError(f"Cannot read {name} as audio: {reason}. Supported: {READABLE}.")


def _read_block(sound: soundfile.SoundFile, name: str) -> np.ndarray:
    try:
        return sound.read(BLOCK_LENGTH, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(". ")
        raise InputError(f"{name} is damaged or cut off: {reason}.") from error


def _open_array(value: Any, request: _Request) -> AudioSource:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"The channels of the array differ in length{request.where}.") from error
    name = f"array {list(array.shape)}{request.where}"
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise InputError(
            f"{name} has {array.ndim} axes; expected [N] or [C, N]. Give several signals as a list."
        )
    num_channels, num_samples = array.shape
    if array.size == 0:
        raise InputError(f"{name} holds no samples.")
    # A surround clip may be shorter than it has channels; beyond 7.1 that is a transposed array.
    if num_channels > MAX_CHANNELS or num_channels > max(num_samples, 8):
        raise InputError(
            f"{name} has {num_channels} channels of {num_samples} samples; expected [C, N]. "
            "If time comes first, transpose it: array.T."
        )
    _as_float32(array[:, :0], name)  # Refuses other types before anything is read.
    if request.sampling_rate is None:
        raise InputError(
            f"The sampling rate of {name} is not known: pass sampling_rate=, or "
            '{"array": ..., "sampling_rate": ...}.'
        )

    def decode() -> Iterator[np.ndarray]:
        for start in range(0, num_samples, BLOCK_LENGTH):
            yield _as_float32(array[:, start : start + BLOCK_LENGTH], name)

    return AudioSource(
        decode,
        name=name,
        source_rate=check_rate(request.sampling_rate, f"sampling rate of {name}"),
        target_rate=request.target_rate,
        num_channels=num_channels,
        downmix=request.downmix,
    )


def _as_float32(samples: np.ndarray, name: str) -> np.ndarray:
    # libsndfile's scales, so that a file and its samples give the same floats.
    match samples.dtype.name:
        case "float16" | "float32" | "float64":
            with np.errstate(over="ignore"):  # What float32 cannot hold is refused as infinite.
                return samples.astype(np.float32)
        case "int16":
            return samples.astype(np.float32) / np.float32(2**15)
        case "int32":
            return samples.astype(np.float32) / np.float32(2**31)
        case "uint8":
            return (samples.astype(np.float32) - np.float32(2**7)) / np.float32(2**7)
    raise InputError(
        f"{name} is of type {samples.dtype}: give floats, int16, int32 or uint8, whose scales are "
        "known."
    )


def _agree(known: Any, request: _Request, name: str = "the audio") -> int:
    rate = check_rate(known, f"sampling rate of {name}{request.where}")
    if request.sampling_rate is not None and check_rate(request.sampling_rate) != rate:
        raise InputError(
            f"sampling_rate={request.sampling_rate} was given, but {name}{request.where} says "
            f"{rate} Hz. sampling_rate is for bare arrays: leave it out."
        )
    return rate


def _key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _COLUMNS if row.get(key) is not None), None)


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns a mapping of columns into rows; one sampling rate may serve all."""
    key = _key(columns)
    if key is None:
        raise InputError(
            f"There is no audio in the columns {sorted(map(str, columns))}: expected one of "
            f"{', '.join(map(repr, _COLUMNS))}."
        )
    if not _has_length(columns[key]):
        raise InputError(f"The column {key!r} holds {_short(columns[key])}; expected a list.")
    names = [key] if key in ("audio", "array") else [k for k in _COLUMNS[2:] if k in columns]
    size = len(columns[key])
    rates = columns.get("sampling_rate")
    table = {name: columns[name] for name in names}
    table["sampling_rate"] = rates if _is_column(rates) else [rates] * size
    for name, column in table.items():
        if not _has_length(column):
            raise InputError(f"The column {name!r} holds {_short(column)}; expected a list.")
        if len(column) != size:
            raise InputError(f"Column {name!r} has {len(column)} rows, but {key!r} has {size}.")
    return [{name: column[i] for name, column in table.items()} for i in range(size)]


def _has_length(value: Any) -> bool:
    # Arrays without axes have the method, which raises.
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def _is_column(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (
        isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1
    )


def _axes(value: Any) -> int | None:
    """The number of axes of an array or nested list of numbers; None for everything else."""
    if isinstance(value, (np.ndarray, Tensor)):
        return None if isinstance(value, np.ndarray) and value.dtype.kind in "OUT" else value.ndim
    if isinstance(value, Real):
        return 0
    if isinstance(value, (list, tuple)):
        inner = _axes(value[0]) if value else 0
        return None if inner is None else inner + 1
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
