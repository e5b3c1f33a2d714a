"""Files that were cut off: of most formats libsndfile reads what is left without an error.

What counts is the size of the samples in the header of WAV, AIFF and CAF, their number in that of
FLAC and MP3, and the length of the last Ogg page. The header of a stream does not know it.
"""

from __future__ import annotations

import os
import re
import struct
from io import BufferedIOBase

_CHUNKED = ("WAV", "WAVEX", "RF64", "AIFF", "CAF")
_MAX_CHUNKS = 1000
# What programs that cannot seek write for a size, or nearly: the largest that they dare (SoX
# 0x7FFFF000 in WAV and 0x7F000000 in AIFF, ALSA 2^31, FFmpeg 2^32 - 1).
_UNKNOWN = (0x7F000000, 2**31, 2**32)
_ABOUT = 2**16
# Some programs count the header among the samples.
_SLACK_BYTES = 64
# Some encoders count an MP3 frame that holds no audio, and decoders may hold back another.
_SLACK_MP3 = 2 * 1152
_MAX_OGG_PAGE = 27 + 255 + 255 * 255


def find_cut(stream: BufferedIOBase, form: str, promised: int, found: int) -> str | None:
    """What is missing of an audio file, for people; None if nothing is known to be.

    It reads a few kilobytes. Three things cannot be told: an MP3 file without a Xing header, other
    formats than those above, and Ogg cut between two pages, since Android's recorder leaves out the
    mark of the last one. libsndfile calls the format ``form``, promised so many samples and gave
    ``found``; ``stream`` is at its beginning.
    """
    unit, slack = "samples", 0
    if form == "OGG":
        return "its last page is incomplete" if _ends_within_a_page(stream) else None
    if form in _CHUNKED:
        (promised, found), unit, slack = _sizes(stream), "bytes of samples", _SLACK_BYTES
    elif form == "MP3" and _says_its_length(stream):
        slack = _SLACK_MP3
    elif form != "FLAC" or promised > 2**62:  # libsndfile's "unknown" is 2^63 - 1.
        return None
    if found + slack >= promised:
        return None
    return f"its header promises {promised:,} {unit}, and {found:,} are there"


def _sizes(stream: BufferedIOBase) -> tuple[int, int]:
    """Bytes of samples that a header promises, and those that are there; zeros if unknown."""
    kind = stream.read(4)
    caf = kind == b"caff"
    layout = struct.Struct(">4sQ" if caf else ">4sI" if kind in (b"FORM", b"RIFX") else "<4sI")
    length, wide = stream.seek(0, os.SEEK_END), 0
    place = 8 if caf else 12
    for _ in range(_MAX_CHUNKS):
        stream.seek(place)
        head = stream.read(layout.size)
        if len(head) < layout.size:
            break
        name, size = layout.unpack(head)
        if name == b"ds64":  # RF64's sizes in 64 bits: of the file, then of the samples.
            wide = int.from_bytes(stream.read(16)[8:], "little")
        place += layout.size
        if name in (b"data", b"SSND"):
            size = wide if wide and size == 2**32 - 1 else size
            if any(abs(size - unknown) <= _ABOUT for unknown in _UNKNOWN):
                break
            return size, length - place
        place = min(place + size + (0 if caf else size % 2), length)
    return 0, 0


def _says_its_length(stream: BufferedIOBase) -> bool:
    """Whether an MP3 file counts its frames; else libsndfile guesses from the size of the file."""
    head = stream.read(10)
    if head[:3] == b"ID3":
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
        stream.seek(10 + size)
        head = b""
    head += stream.read(4096)
    found = re.search(rb"\xff[\xe0-\xff].{11,36}(?:Xing|Info)(.{8})", head, re.DOTALL)
    flags, num_frames = struct.unpack(">II", found[1]) if found else (0, 0)
    return bool(flags & 1 and num_frames)


def _ends_within_a_page(stream: BufferedIOBase) -> bool:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _MAX_OGG_PAGE))
    tail = stream.read()
    start = tail.rfind(b"OggS")
    if start < 0:
        return False  # Something else follows the audio.
    page = tail[start:]
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
