"""Files of audio that programs write and decoders misjudge, made of ordinary ones."""

from __future__ import annotations

import re

from tokenizer.audio.av_decoding import mp3_length


def without_first_frame(data: bytes) -> bytes:
    """An MP3 file without the frame that tells its length."""
    starts = [m.start() for m in re.finditer(rb"\xff[\xfa\xfb]", data)]
    return next(
        data[start:] for start in starts[1:] if mp3_length(data[start:]) >= mp3_length(data) - 1152
    )


def of_unknown_length(data: bytes) -> bytes:
    """A FLAC file as it is written to a pipe: STREAMINFO's number of samples, 36 bits, is zero."""
    return data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]


def flac_of(samples: list[int], rate: int, bits: int) -> bytes:
    """A FLAC file of any width of samples, one channel, without compression.

    FLAC has codes for some widths; of others, frames say that STREAMINFO has it.
    """
    size = 4096
    code = {8: 1, 12: 2, 16: 4, 20: 5, 24: 6, 32: 7}.get(bits, 0)
    info = f"{size:016b}{size:016b}{0:048b}{rate:020b}{0:03b}{bits - 1:05b}{len(samples):036b}"
    data = b"fLaC\x80\x00\x00\x22" + _bytes(info) + bytes(16)
    for number, first in enumerate(range(0, len(samples), size)):
        block = samples[first : first + size]
        head = f"{0x3FFE:014b}00{7:04b}{0:04b}{0:04b}{code:03b}0{number:08b}{len(block) - 1:016b}"
        frame = _bytes(head)
        frame += bytes([_crc(frame, 0x07, 8)])
        body = "00000010" + "".join(f"{value % 2**bits:0{bits}b}" for value in block)  # verbatim
        frame += _bytes(body.ljust(-(-len(body) // 8) * 8, "0"))
        data += frame + _crc(frame, 0x8005, 16).to_bytes(2, "big")
    return data


def _bytes(bits: str) -> bytes:
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _crc(data: bytes, polynomial: int, width: int) -> int:
    crc, top = 0, 1 << (width - 1)
    for byte in data:
        crc ^= byte << (width - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) % (1 << width)
    return crc
