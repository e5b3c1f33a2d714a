"""Validation of untrusted checkpoints: sizes, names, checksums.

A configuration decides how much is built, so its numbers are bounded before anything is, and the
model that it describes may not be larger than the weights that come with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizer.errors import InputError, MissingFileError
from tokenizer.hub import check_name
from tokenizer.saving import damaged

# What a configuration may claim; larger numbers are damage or an attack. These are far above every
# real model: raise them here if yours is larger.
MAX_CONFIG_BYTES = 2**20
MAX_NUMBER = 2**31
MAX_SAMPLING_RATE = 2**24  # as in code files
MAX_REPEATS = 1024  # of layers, codebooks, hypotheses, and entries of a list
MAX_NESTING = 8

# Words in the names of numbers that say how often something is built or done, not how large it is.
_REPEATS = ("depth", "layers", "blocks", "num_codebooks", "beam_width", "descents", "search_rounds")

# Buffers and small parameters that a model may have beyond its weights file.
_SLACK = 2**20


def read_config(path: Path) -> dict[str, Any]:
    """Reads a ``config.json`` that may be anything; ValueError if it is too long or no object."""
    with path.open("rb") as stream:
        content = stream.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise InputError(f"{path} is longer than {MAX_CONFIG_BYTES:,} bytes: no configuration.")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, not a JSON object.")
    return value


def check_numbers(value: Any, name: str, nesting: int = 0) -> None:
    """Refuses a configuration with numbers, lists or nestings that no real model has.

    ``name`` is for messages, and because some numbers have bounds of their own.
    """
    if nesting > MAX_NESTING:
        raise InputError(f"{name} is nested deeper than {MAX_NESTING} levels.")
    if isinstance(value, (Mapping, list, tuple)):
        if len(value) > MAX_REPEATS:
            raise InputError(f"{name} has {len(value)} entries; at most {MAX_REPEATS} are allowed.")
        parts = value.items() if isinstance(value, Mapping) else [(name, item) for item in value]
        for key, item in parts:
            check_numbers(item, str(key), nesting + 1)
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        return
    elif isinstance(value, (int, float)):
        limit = MAX_SAMPLING_RATE if name == "sampling_rate" else MAX_NUMBER
        limit = MAX_REPEATS if any(word in name for word in _REPEATS) else limit
        if not -limit <= value <= limit:  # NaN fails it too.
            raise InputError(f"{name}={value} is not within {limit:,}: no real model has that.")
    else:
        raise InputError(f"{name} is a {type(value).__name__}, which JSON has not.")


def checkpoint_folder(
    name: str | Path, subfolder: str | None = None, **options: Any
) -> Path | None:
    """The folder of a checkpoint; None for a name on the hub.

    FileNotFoundError if it is not there or holds no ``config.json``. The options are those of
    `check_name`.
    """
    if Path(name).exists():
        folder = Path(name, subfolder or "")
        if not (folder / "config.json").is_file():  # A pipe would be waited for.
            raise MissingFileError(f"{folder} holds no config.json: it is no tokenizer checkpoint.")
        return folder
    check_name(name, subfolder=subfolder, **options)
    return None


def weight_files(folder: Path, variant: str | None = None, stem: str = "model") -> list[Path]:
    """The files that hold the weights of a checkpoint folder, e.g. of the variant "fp16"."""
    middle = "" if variant is None else f".{variant}"
    files = [folder / f"{stem}{middle}.safetensors"]
    index = folder / f"{stem}.safetensors.index{middle}.json"
    if not files[0].is_file() and index.is_file():
        files = [folder / name for name in _indexed(index)]
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{folder} lacks its weights: there is no {file.name}.")
    return files


def check_stored(
    expected: Mapping[str, Tensor], folder: Path, variant: str | None = None, stem: str = "model"
) -> None:
    """Refuses weights of other names, shapes or kinds of numbers than the model's.

    ``expected`` is the model's state, perhaps without memory; of the files only headers are read.
    They are named ``stem``, as transformers and diffusers name them.
    """
    stored: dict[str, tuple[list[int], str]] = {}
    for file in weight_files(folder, variant, stem):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    tensor = weights.get_slice(name)
                    stored[name] = tensor.get_shape(), _kind_of_stored(tensor.get_dtype())
        except SafetensorError as error:
            raise damaged(file, error) from None
    sizes = [value.numel() for value in expected.values()]
    check_size(sum(sizes), sum(prod(shape) for shape, _ in stored.values()), str(folder))
    wanted = {name: (list(value.shape), _kind(value.dtype)) for name, value in expected.items()}
    differing = {
        name: f"{stored[name]}, not {wanted[name]}"
        for name in sorted(stored.keys() & wanted.keys())
        if stored[name] != wanted[name]
    }
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    wrong = {"missing": sorted(missing), "unexpected": sorted(unexpected), "differing": differing}
    if any(wrong.values()):
        raise InputError(f"The weights in {folder} do not fit its config.json: {wrong}.")


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype == torch.bool else "integer"


def _kind_of_stored(dtype: str) -> str:
    """The same for safetensors' names, such as F32, BF16, I64, U8, BOOL, C64."""
    kinds = {"F": "float", "B": "float", "C": "complex", "I": "integer", "U": "integer"}
    return "bool" if dtype == "BOOL" else kinds.get(dtype[0], dtype)


def check_values(tensors: Mapping[str, Tensor], checksum: str | None, name: str) -> None:
    """Raises ValueError for weights that are damaged or not finite.

    ``checksum`` is theirs (`weights_checksum`), None if it is not known.
    """
    if checksum is not None and weights_checksum(tensors) != checksum:
        raise InputError(
            f"The weights in {name} are damaged, or not those that its config.json was saved "
            "with (their checksum is wrong): fetch or save it again."
        )
    for key, value in tensors.items():
        if value.is_floating_point() and not _is_finite(value):
            raise InputError(f"The weights in {name} hold NaN or infinity, in {key}.")


def _is_finite(value: Tensor) -> bool:
    """Whether neither NaN nor infinity is in it; several times as fast as to look at each value."""
    return value.numel() == 0 or all(bool(torch.isfinite(x)) for x in torch.aminmax(value))


def _indexed(path: Path) -> list[str]:
    names = read_config(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path} has no weight_map.")
    for name in names.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise InputError(f"{path} names the file {name!r}: expected one of its own folder.")
    return sorted(set(names.values()))


def check_size(expected: int, stored: int, name: str) -> None:
    """Refuses a configuration of a much larger model than the weights that are there."""
    if expected > 2 * stored + _SLACK:
        raise InputError(
            f"config.json in {name} describes a model of {expected:,} numbers, but its weights hold"
            f" {stored:,}: they do not belong together."
        )


def weights_checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32, in eight hex digits, of names, shapes and values, floats taken as float32.

    safetensors files have no checksums: a bit that flips in one makes another model of it, without
    a word. The checksum does not depend on how tensors are spread over files, nor on the device.
    """
    crc = 0
    for name in sorted(tensors):
        value = tensors[name].detach()
        value = value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        crc = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}\n".encode(), crc)
        crc = zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
