"""What is known of the public corpora before anything is read, from ``corpora.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets_scripts.sources.corpus import CorpusInfo, Download


def read_info(
    name: str,
    options: Mapping[str, str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> CorpusInfo:
    """What ``corpora.toml`` says of a corpus, with the options that its code takes."""
    fields = tomllib.loads(Path(__file__).with_name("corpora.toml").read_text("utf-8"))[name]
    downloads = tuple(
        Download(
            file["url"],
            file.get("name", file["url"].rpartition("/")[2]),
            tuple(file.get("splits", ())),
            file.get("checksum"),
        )
        for file in fields["downloads"]
    )
    more = {"splits": tuple(fields["splits"]), "downloads": downloads}
    return CorpusInfo(name, options=options or {}, choices=choices or {}, **(fields | more))
