"""Ids of clips: a hash of a sequence of them, and the search for ids that come twice."""

from __future__ import annotations

import hashlib

import numpy as np


class IdHash:
    """A hash of a sequence of clips' ids."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, clip_id: str) -> None:
        """Appends an id."""
        text = clip_id.encode()
        self._digest.update(len(text).to_bytes(8, "little") + text)

    def hexdigest(self) -> str:
        """Sixteen hex digits."""
        return self._digest.hexdigest()[:16]


class SeenIds:
    """Finds ids that come twice, in about nine bytes an id.

    Only hashes of 64 bits are kept: among a hundred million ids the chance that two different ones
    are taken for the same is one in four thousand.
    """

    def __init__(self) -> None:
        self._sorted = np.zeros(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, clip_id: str) -> bool:
        """Adds an id; whether it was there."""
        digest = hashlib.blake2b(clip_id.encode(), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        if value in self._recent or (
            place < len(self._sorted) and int(self._sorted[place]) == value
        ):
            return True
        self._recent.add(value)
        if len(self._recent) > max(2**14, len(self._sorted) // 32):
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]), kind="stable")
            self._recent = set()
        return False
