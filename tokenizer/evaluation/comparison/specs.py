"""What to compare, at which settings: short forms for the command line, files for long lists."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizer.command import short_form
from tokenizer.errors import InputError, MissingFileError
from tokenizer.quantizers import QUANTIZERS, quantizer_class
from tokenizer.quantizers.base import Quantizer
from tokenizer.training.config import CropTrainingConfig
from tokenizer.training.quantizer import FitConfig

# Arguments of the constructor that the comparison sets, not the specification.
_SET_BY_COMPARISON = ("self", "dim")
# Keys of the specification itself; all others are options of the quantizer.
_OWN = ("kind", "name", "per_rate")

# The first codebooks of these are a poor quantizer by themselves, so a fair comparison fits a
# quantizer for each rate.
FITTED_PER_RATE = ("pq", "opq", "lsq")


@dataclass(frozen=True)
class QuantizerSpec:
    """A quantizer to be fitted.

    Attributes:
        kind: Its name in `tokenizer.quantizers.QUANTIZERS`.
        options: Arguments of its constructor, as JSON values.
        name: How tables call it. Default: the short form of the above.
        per_rate: Whether each rate gets a quantizer fitted for it alone. Default: for the kinds in
            `FITTED_PER_RATE`.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    per_rate: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in QUANTIZERS:
            raise InputError(f"Unknown quantizer {self.kind!r}; known: {', '.join(QUANTIZERS)}.")
        parameters = self._parameters()
        unknown = sorted(set(self.options) - set(parameters))
        if unknown:
            known = ", ".join(parameters)
            raise InputError(f"{self.kind} has no option {unknown[0]!r}; it has {known}.")
        object.__setattr__(self, "name", self.name or self._short_form())
        if self.per_rate is None:
            object.__setattr__(self, "per_rate", self.kind in FITTED_PER_RATE)

    def _parameters(self) -> list[str]:
        signature = inspect.signature(quantizer_class(self.kind).__init__)
        return [name for name in signature.parameters if name not in _SET_BY_COMPARISON]

    def _short_form(self) -> str:
        options = (
            f"{k}={v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}"
            for k, v in self.options.items()
        )
        return ":".join(filter(None, (self.kind, ",".join(options))))

    @property
    def folder(self) -> str:
        """A name for files: readable, and different for different quantizers."""
        identity = json.dumps([self.kind, self.options, self.per_rate], sort_keys=True)
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower()[:40]
        return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    def build(self, dim: int, **defaults: Any) -> Quantizer:
        """An unfitted quantizer; ``defaults`` are arguments that the options leave out.

        Raises:
            ValueError: If the constructor refuses the options.
        """
        parameters = self._parameters()
        extra = {k: v for k, v in defaults.items() if k in parameters and k not in self.options}
        try:
            return quantizer_class(self.kind)(dim, **extra, **self.options)  # pyright: ignore
        except (TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"Cannot build the quantizer {self.name!r}: {reason}") from error

    def plan(
        self, dim: int, bits_per_frame: Sequence[float | int], codebook_size: int
    ) -> dict[int, list[int]]:
        """What must be fitted to serve some budgets of bits, each with the most codebooks that fit.

        Returns:
            For each quantizer to fit, its number of codebooks: the numbers of codebooks to measure
            it with, most first, without those for which the latents have too few dimensions.

        Raises:
            ValueError: If no budget has room for one codebook, or the options are refused.
        """
        one = self.build(dim, num_codebooks=1, codebook_size=codebook_size)
        fixed = "num_codebooks" in self.options or "num_codebooks" not in self._parameters()
        sizes = one.codebook_sizes if fixed else one.codebook_sizes[:1] * 4096
        counts = sorted({codebooks_within(sizes, budget) for budget in bits_per_frame} - {0})
        if not counts:
            raise InputError(
                f"The quantizer {self.name!r} needs {bits(sizes[:1]):.2f} bits a frame for one "
                f"codebook; the largest rate asked for has {max(bits_per_frame):.2f}."
            )
        counts.reverse()
        while len(counts) > 1 and not fixed:
            try:
                self.build(dim, num_codebooks=counts[0], codebook_size=codebook_size)
                break
            except ValueError:
                del counts[0]
        if self.per_rate and not fixed:
            return {n: [n] for n in counts}
        return {len(sizes) if fixed else counts[0]: counts}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": self.kind, "name": self.name, "per_rate": self.per_rate, **self.options}


@dataclass(frozen=True)
class CompareConfig:
    """What a comparison holds equal for all quantizers.

    Attributes:
        bitrates: Rates in bit/s and channel; a quantizer uses the most codebooks that fit.
        codebook_size: Entries of a codebook, for quantizers whose specification does not say.
        fit: Which latents quantizers are fitted to.
        finetune: How each quantizer's decoder is finetuned; None: not at all.
    """

    bitrates: tuple[float | int, ...] = (24_000, 16_000, 10_000, 3_000)
    codebook_size: int = 1024
    fit: FitConfig = field(default_factory=FitConfig)
    finetune: CropTrainingConfig | None = None

    def __post_init__(self) -> None:
        if not self.bitrates or min(self.bitrates) <= 0:
            raise InputError(f"Name at least one rate, all positive: {self.bitrates}.")
        if self.codebook_size < 2:
            raise InputError(f"codebook_size is {self.codebook_size}; it must be at least 2.")


@dataclass(frozen=True)
class Competitor:
    """A finished tokenizer that is evaluated beside the quantizers, e.g. one trained end to end.

    Attributes:
        name: For tables.
        path: Its checkpoint.
    """

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Competitor:
        """Reads ``NAME=PATH``, or ``PATH``, which is then called like its folder."""
        name, equals, path = text.partition("=")
        if equals and name and path:
            return cls(name, path)
        parts = [part for part in Path(text).parts if part != "model"]
        return cls(parts[-1] if parts else text, text)


def bits(codebook_sizes: Sequence[int]) -> float:
    """Bits of one code from each codebook, without entropy coding."""
    return sum(math.log2(size) for size in codebook_sizes)


def codebooks_within(codebook_sizes: Sequence[int], budget: float | int) -> int:
    """The most codebooks, from the first on, whose codes fit into ``budget`` bits."""
    totals = itertools.accumulate(map(math.log2, codebook_sizes))
    return sum(total <= budget + 1e-6 for total in totals)


def parse_spec(text: str) -> QuantizerSpec:
    """Reads ``KIND`` or ``KIND:OPTION=VALUE,...``, e.g. ``rvq:standardization=channel``.

    Values are JSON where they can be read so (``4``, ``true``, ``[8,5,5,5]``) and strings
    otherwise; ``name=`` and ``per_rate=`` are the specification's own.
    """
    example = "rvq:standardization=channel,beam_width=4"
    kind, options = short_form(text, "the quantizer", example)
    return _from_mapping({"kind": kind, **options}, repr(text))


def _from_mapping(values: Any, where: str) -> QuantizerSpec:
    if isinstance(values, str):
        return parse_spec(values)
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise InputError(f"{where} is no quantizer: expected an object with 'kind', got {values}.")
    name, per_rate = values.get("name", ""), values.get("per_rate")
    if not isinstance(name, str) or not (per_rate is None or isinstance(per_rate, bool)):
        raise InputError(f"{where}: 'name' must be text, and 'per_rate' true or false.")
    options = {k: v for k, v in values.items() if k not in _OWN}
    return QuantizerSpec(values["kind"], options, name, per_rate)


def read_specs(arguments: Iterable[str]) -> list[QuantizerSpec]:
    """Quantizers from short forms and from JSON or TOML files of them.

    A file holds ``{"quantizers": [...]}`` (in JSON, the list alone will do) of objects ``{"kind":
    ..., "name": ..., OPTION: VALUE, ...}`` or short forms.

    Raises:
        FileNotFoundError: If a named file is not there.
        ValueError: If something cannot be read, is unknown, or is named twice.
    """
    specs: list[QuantizerSpec] = []
    for argument in arguments:
        path = Path(argument)
        if path.suffix.lower() not in (".json", ".toml"):
            specs.append(parse_spec(argument))
            continue
        if not path.is_file():
            raise MissingFileError(f"No file of quantizers at {path}.")
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"Cannot read {path}: {error}.") from None
        entries = content.get("quantizers") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path} holds no list 'quantizers'.")
        specs += [_from_mapping(entry, f"Entry {i} of {path}") for i, entry in enumerate(entries)]
    check_names(specs)
    return specs


def check_names(entries: Sequence[QuantizerSpec | Competitor]) -> None:
    """Raises ValueError if two entries of a comparison have one name."""
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            raise InputError(f"{count} entries are called {name!r}: give each a name of its own.")
