"""Clips that metadata lists, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError

# Bytes of a text that describes a clip; what is longer is no caption.
MAX_TEXT = 2**20


class Listing:
    """Makes clips of what metadata lists; reports what comes twice or is not there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._seen: set[str] = set()

    def clip(self, clip_id: str, file: str, where: str, **fields: Any) -> CorpusClip | Missing:
        """A clip of this id and file in the tree, or why there is none.

        ``where`` it is listed is for the reason; ``fields`` are those of `CorpusClip`.
        """
        if (unreadable := not_text(clip_id, fields)) is not None:
            return unreadable
        if clip_id in self._seen:
            return Missing(clip_id, f"{where} lists it a second time")
        self._seen.add(clip_id)
        if not self._tree.has(file):
            return Missing(clip_id, f"there is no file {file}, which {where} lists")
        return CorpusClip(clip_id, self._tree.audio(file), **fields)


def not_text(clip_id: str, fields: Mapping[str, Any] | None = None) -> Missing | None:
    """Reports a clip whose id, label, caption or metadata UTF-8 cannot hold.

    Names of files and JSON may hold halves of characters (surrogates). Written to a dataset, one
    would end the run, and every run after it.
    """
    fields = fields or {}
    metadata = fields.get("metadata") or {}
    try:
        clip_id.encode()
        for text in (fields.get("label"), fields.get("caption"), *metadata, *metadata.values()):
            (text or "").encode()
    except UnicodeEncodeError as error:
        if error.object == clip_id:
            shown = clip_id.encode("utf-8", "backslashreplace").decode()
            return Missing(shown, "its name is not text in UTF-8: rename the file")
        return Missing(clip_id, "its label, caption or metadata is not text in UTF-8")
    return None


def decode_text(content: bytes, name: str) -> str:
    """The text of a file that describes a clip, without blanks around it.

    Raises ValueError if it is not UTF-8, or too long: read no more than `MAX_TEXT` bytes and one.
    """
    if len(content) > MAX_TEXT:
        raise InputError(f"its {name} is longer than {MAX_TEXT:,} bytes")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"its {name} is not text in UTF-8") from None
