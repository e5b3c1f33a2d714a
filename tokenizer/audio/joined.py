"""Files that were joined (``cat a.ogg b.ogg``), of which libsndfile reads the first alone.

It refuses joined WAV and AIFF by itself.
"""

from __future__ import annotations

import re
from typing import Any

# Formats that FFmpeg reads to the end, and those of which nothing here reads more than the first.
READ_BY_FFMPEG = ("FLAC", "OGG")
READ_BY_NONE = ("RF64", "W64", "AU", "CAF")


def is_joined(data: Any, form: str) -> bool:
    """Whether a second file begins where the first one ends.

    ``data`` are the bytes of a file whose format libsndfile calls ``form``.
    """
    if form == "FLAC":  # Each begins with a block STREAMINFO of 34 bytes.
        return re.compile(rb"fLaC[\x00\x80]\x00\x00\x22").search(data, 8) is not None
    if form == "OGG":
        return _has_second_beginning(data)
    end = _end(data, form)
    return end > 0 and data[end : end + 4] == data[:4]


def _has_second_beginning(data: Any) -> bool:
    """Whether a page that begins a stream comes after one that does not."""
    place, begun = 0, False
    while place >= 0 and len(head := data[place : place + 27]) == 27 and head[:4] == b"OggS":
        first = bool(head[5] & 2)
        if first and begun:
            return True
        begun = begun or not first
        table = data[place + 27 : place + 27 + head[26]]
        place += 27 + head[26] + sum(table)
    return False


def _end(data: Any, form: str) -> int:
    """Where the header of the first file says that it ends; 0 if it does not say."""
    if form == "RF64":  # The first chunk, ds64, has the size of all that follows a head of 8 bytes.
        return 8 + int.from_bytes(data[20:28], "little")
    if form == "W64":  # After an id of 16 bytes.
        return int.from_bytes(data[16:24], "little")
    if form == "AU":
        order = "big" if data[:4] == b".snd" else "little"
        first, size = (int.from_bytes(data[i : i + 4], order) for i in (4, 8))
        return 0 if size == 2**32 - 1 else first + size
    place = 8  # CAF: chunks with sizes of their own, the last of which may be unknown.
    while len(head := data[place : place + 12]) == 12 and head[:4] != data[:4]:
        size = int.from_bytes(head[4:], "big", signed=True)
        if size < 0:
            return 0
        place += 12 + size
    return place
