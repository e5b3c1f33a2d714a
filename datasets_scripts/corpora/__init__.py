"""Public corpora, a file each, and kinds of corpora that people make themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType

_MODULES = {
    "audiocaps": "datasets_scripts.corpora.audiocaps",
    "audiofolder": "datasets_scripts.corpora.audiofolder",
    "esc50": "datasets_scripts.corpora.esc50",
    "fma": "datasets_scripts.corpora.fma",
    "fsd50k": "datasets_scripts.corpora.fsd50k",
    "hub_dataset": "datasets_scripts.corpora.hub_dataset",
    "librispeech": "datasets_scripts.corpora.librispeech",
    "ljspeech": "datasets_scripts.corpora.ljspeech",
    "musiccaps": "datasets_scripts.corpora.musiccaps",
    "vctk": "datasets_scripts.corpora.vctk",
    "webdataset_shards": "datasets_scripts.corpora.webdataset_shards",
}


class _Corpora(Mapping[str, ModuleType]):
    """Names of corpora to their modules, which are `datasets_scripts.sources.corpus.Corpus`.

    A module is imported when it is asked for.
    """

    def __getitem__(self, name: str) -> ModuleType:
        return import_module(_MODULES[name])

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)

    def __contains__(self, name: object) -> bool:
        return name in _MODULES  # Mapping's own would import.


CORPORA: Mapping[str, ModuleType] = _Corpora()
