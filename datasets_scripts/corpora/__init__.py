"""Public corpora, a file each, and kinds of corpora that people make themselves."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets_scripts.sources.corpus import Corpus, CorpusInfo, Download
from tokenizer.errors import InputError

_INFOS = tomllib.loads(Path(__file__).with_name("corpora.toml").read_text("utf-8"))


class _Corpora(Mapping[str, Corpus]):
    """The corpora by name; a corpus' module is imported at the first access."""

    def __getitem__(self, name: str) -> Corpus:
        if name not in _INFOS:
            raise KeyError(name)
        module: Any = import_module(f"{__name__}.{name}")
        # In version 0.1 a module with the same functions was the corpus.
        return getattr(module, "CORPUS", module)

    def __iter__(self) -> Iterator[str]:
        return iter(_INFOS)

    def __len__(self) -> int:
        return len(_INFOS)

    def __contains__(self, name: object) -> bool:
        return name in _INFOS  # Mapping's own would import.


CORPORA: Mapping[str, Corpus] = _Corpora()


def find_corpus(name: str) -> Corpus:
    """The corpus of a name; raises ValueError if there is none."""
    if name not in CORPORA:
        raise InputError(f"There is no corpus {name!r}. Corpora: {', '.join(CORPORA)}.")
    return CORPORA[name]


def read_info(
    name: str,
    options: Mapping[str, str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> CorpusInfo:
    """What ``corpora.toml`` says of a corpus, with the options that its code takes."""
    fields = _INFOS[name]
    downloads = tuple(
        Download(
            file["url"],
            file.get("name", file["url"].rpartition("/")[2]),
            tuple(file.get("splits", ())),
            file.get("checksum"),
        )
        for file in fields.get("downloads", ())
    )
    more = {"splits": tuple(fields.get("splits", ())), "downloads": downloads}
    return CorpusInfo(name, options=options or {}, choices=choices or {}, **(fields | more))


def describe_corpus(
    name: str, root: str | Path, options: Mapping[str, str] | None = None
) -> CorpusInfo:
    """What a corpus is, with the splits that ``root`` really has.

    Raises FileNotFoundError if there is nothing of the corpus at ``root``, and ValueError if there
    is no such corpus, or it has no such option.
    """
    corpus, options = find_corpus(name), options or {}
    corpus.INFO.check_options(options)
    return corpus.describe(root, **options)
