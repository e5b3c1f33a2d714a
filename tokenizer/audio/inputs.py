"""Whatever the user has, as audio: files, bytes, arrays, `datasets` rows, batches of these.

`open_signal` lists the forms of one piece of audio:

* a path; the bytes of an audio file; a binary stream such as ``sys.stdin`` (copied to a temporary
  file first);
* a NumPy array, torch tensor or list of numbers, ``[N]`` or ``[C, N]``: floats are taken as they
  are, int16, int32 and uint8 are scaled to [-1, 1);
* a mapping, for instance a row of a `datasets.Dataset`. The first of these keys that is there and
  not None counts: ``audio`` (any of these forms), ``array`` with ``sampling_rate``, ``bytes``,
  ``path``, ``file``;
* torchcodec's ``AudioDecoder``, recognised by its methods, so that torchcodec need not be
  installed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tokenizer.audio.resampling import check_rate
from tokenizer.audio.signals import MAX_CHANNELS as MAX_CHANNELS, ArraySignal, AudioFile, Signal
from tokenizer.audio.source import AudioSource
from tokenizer.errors import InputError, MissingFileError

# Keys of a mapping that may hold audio; the first that is there counts.
_COLUMNS = ("audio", "array", "bytes", "path", "file")


def open_audio(
    value: Any, *, target_rate: int, sampling_rate: float | int | None = None, downmix: bool = False
) -> AudioSource:
    """Opens one piece of audio in any of the forms of `tokenizer.audio.inputs`.

    Args:
        value: The audio. Arrays are not copied: leave them unchanged while the source is in use.
        target_rate: Hz that the source shall have.
        sampling_rate: Hz of a bare array. Audio that knows its own rate does not need it, and may
            not contradict it.
        downmix: Whether to average the channels into one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not audio, holds no samples, has an impossible shape or type, or its
            rate is not known. Samples are checked as they are read.
    """
    signal = open_signal(value, sampling_rate=sampling_rate)
    return AudioSource(signal, target_rate=target_rate, downmix=downmix)


def open_batch(
    value: Any, *, target_rate: int, sampling_rate: Any = None, downmix: bool = False
) -> list[AudioSource]:
    """Opens every item of a batch (see `is_batch`); further errors as `open_audio`.

    ``sampling_rate`` is one for all, or one for each (None where it is known).

    Raises:
        ValueError: If there are not as many rates as items, or columns differ in length.
    """
    items = _rows(value) if isinstance(value, Mapping) else list(value)
    rates = list(sampling_rate) if is_column(sampling_rate) else [sampling_rate] * len(items)
    if len(rates) != len(items):
        raise InputError(f"{len(rates)} sampling rates were given for {len(items)} clips.")
    signals = [
        open_signal(item, sampling_rate=rate, where=f" (item {i} of the batch)")
        for i, (item, rate) in enumerate(zip(items, rates, strict=True))
    ]
    return [AudioSource(signal, target_rate=target_rate, downmix=downmix) for signal in signals]


def open_signal(value: Any, *, sampling_rate: Any = None, where: str = "") -> Signal:
    """Opens one piece of audio in any of the forms above, at its own rate.

    A file is not opened before something of it is needed: ``open_signal(path).read(first, count)``
    opens it once. Further arguments and errors are those of `open_audio`; ``where`` says in
    messages which item of a batch it is.
    """
    match value:
        case str() | Path():
            signal = _path(Path(value))
        case bytes() | bytearray() | memoryview():
            signal = AudioFile(bytes(value), f"the audio's bytes{where}")
        case Mapping():
            return _row(value, sampling_rate, where)
        case list() | tuple() if is_batch(value) and _axes(value) is None:
            raise InputError(f"A batch cannot be one piece of audio{where}: {_short(value)}")
        case np.ndarray() | Tensor() | list() | tuple():
            return ArraySignal(value, sampling_rate, where)
        case _ if hasattr(value, "get_all_samples"):
            samples = value.get_all_samples()
            signal = ArraySignal(samples.data, samples.sample_rate, where)
        case _ if hasattr(value, "read"):
            signal = _stream(value, f"the stream{where}")
        case _:
            raise InputError(
                f"Cannot read audio from {_short(value)}{where}: expected a path, bytes, an array, "
                '{"array", "sampling_rate"}, {"path", "bytes"} or a datasets row.'
            )
    _check_same_rate(sampling_rate, signal)
    return signal


def _row(row: Mapping[str, Any], sampling_rate: Any, where: str) -> Signal:
    key = _key(row)
    rate = row.get("sampling_rate")
    match key, None if key is None else row[key]:
        case "bytes", (bytes() | bytearray() | memoryview()) as content:
            signal = AudioFile(bytes(content), str(row.get("path") or f"the audio's bytes{where}"))
        case "bytes", value:
            raise InputError(f"'bytes' holds {_short(value)}{where}, not bytes.")
        case (("path" | "file"), (str() | Path()) as path):
            return open_signal(path, sampling_rate=sampling_rate, where=where)
        case (("path" | "file"), value):
            raise InputError(f"{key!r} holds {_short(value)}{where}, not a path.")
        case "array", value:
            signal = ArraySignal(value, sampling_rate if rate is None else rate, where)
        # A file's header is believed before a column of the dataset; a bare array has nothing else.
        case "audio", value if rate is not None and _axes(value) is not None:
            return _row({"array": value, "sampling_rate": rate}, sampling_rate, where)
        case "audio", value:
            return open_signal(value, sampling_rate=sampling_rate, where=where)
        case _:
            raise InputError(
                f"There is no audio in {sorted(map(str, row))}{where}: expected a value under "
                f"{', '.join(map(repr, _COLUMNS))}."
            )
    _check_same_rate(sampling_rate, signal)
    return signal


def _path(path: Path) -> AudioFile:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an audio file.")
    if not path.exists():
        raise MissingFileError(f"No such file: {path}")
    if path.is_file():
        return AudioFile(path)
    with path.open("rb") as stream:  # A pipe, such as /dev/stdin, can be read only once.
        return _stream(stream, str(path))


def _stream(stream: Any, name: str) -> AudioFile:
    descriptor, copy = tempfile.mkstemp(prefix="latok-")
    signal = AudioFile(Path(copy), name)
    remove = weakref.finalize(signal, Path(copy).unlink, missing_ok=True)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Text streams such as sys.stdin wrap the binary one that is needed.
            shutil.copyfileobj(getattr(stream, "buffer", stream), file)
        signal.info()  # Opens it.
    except TypeError as error:
        remove()
        raise InputError(f"{name} does not give bytes: open it in binary mode.") from error
    except BaseException:
        remove()
        raise
    return signal


def _check_same_rate(sampling_rate: Any, signal: Signal) -> None:
    if sampling_rate is None:
        return
    rate = signal.info().sampling_rate
    if check_rate(sampling_rate) != rate:
        raise InputError(
            f"sampling_rate={sampling_rate} was given, but {signal.name} says {rate} Hz. "
            "sampling_rate is for bare arrays: leave it out."
        )


def is_batch(value: Any) -> bool:
    """Whether `value` is for `open_batch` rather than `open_audio`.

    Batches are

    * a list or tuple, unless it holds plain numbers: those are the samples of one signal;
    * a NumPy array of strings or objects;
    * a mapping of columns, as ``Dataset.map(batched=True)`` hands over: a `LazyBatch`, or one whose
      ``sampling_rate`` is a list, whose ``audio``, ``bytes``, ``path`` or ``file`` is a batch as
      above, or whose ``array`` has more than two axes.
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
    if is_column(value.get("sampling_rate")):
        return True
    key = _key(value)
    if key == "array":
        return (_axes(value[key]) or 0) > 2
    return key is not None and is_batch(value[key])


def is_column(value: Any) -> bool:
    """Whether a value is one for each row: a list, or an array with axes."""
    return isinstance(value, (list, tuple)) or (
        isinstance(value, (np.ndarray, Tensor)) and value.ndim > 0
    )


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
    table["sampling_rate"] = rates if is_column(rates) else [rates] * size
    for name, column in table.items():
        if not _has_length(column):
            raise InputError(f"The column {name!r} holds {_short(column)}; expected a list.")
        if len(column) != size:
            raise InputError(f"Column {name!r} has {len(column)} rows, but {key!r} has {size}.")
    return [{name: column[i] for name, column in table.items()} for i in range(size)]


def _has_length(value: Any) -> bool:
    # Of `datasets`' columns and arrays; arrays without axes have the method, which raises.
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


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
