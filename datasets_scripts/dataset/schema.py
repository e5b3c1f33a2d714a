"""JSON values checked against dataclasses: one error that names the file, the key and the value."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from tokenizer.errors import InputError


def parse(kind: Any, value: Any, where: str) -> Any:
    """Makes a JSON value a value of a type; ``where`` is file and key, for messages.

    The type is a dataclass, or one of its fields: bool, int, float, str, None, Any, a union,
    ``tuple[X, ...]`` or ``dict[str, X]``. Numbers must be finite; lists become tuples. Keys without
    a field are ignored, so that files of later versions can be read.

    Raises:
        ValueError: If it is of another type, or lacks a field. Names ``where`` and the value.
    """
    if is_dataclass(kind):
        return _parse_fields(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return parse(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {key: parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        value = float(value)
    if origin is None and type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    name = {tuple: "a list", dict: "an object"}.get(origin or kind, getattr(kind, "__name__", kind))
    raise InputError(f"{where} is {_shown(value)}; expected {name}.")


def _parse_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {_shown(value)}; expected an object.")
    hints, arguments = _type_hints(kind), {}
    for field in fields(kind):
        if field.name in value:
            place = f"{where}{'.' if ': ' in where else ': '}{field.name}"
            arguments[field.name] = parse(hints[field.name], value[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where} has no {field.name!r}.")
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


_type_hints = lru_cache(get_type_hints)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
