"""Whether audio files are read whole: their lengths beside those that FFmpeg decodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer.audio import AudioFile, list_files
from tokenizer.audio.av_decoding import AvSound

# Decoders of lossy formats differ in what they cut off at both ends.
_SLACK = {"MP3": 5 * 1152, "OGG": 5760}


@dataclass(frozen=True)
class CheckedFile:
    """A file that was read: its samples, FFmpeg's (None if it cannot), or why it was refused."""

    path: Path
    num_samples: int | None = None
    expected: int | None = None
    slack: int = 0
    refused: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the lengths agree, or the file was refused with a reason."""
        if self.refused is not None or self.expected is None or self.num_samples is None:
            return True
        return abs(self.num_samples - self.expected) <= self.slack


def check_audio(folder: str | Path) -> Iterator[CheckedFile]:
    """Reads every file in a folder, whatever its suffix; hidden ones are left out.

    Raises ImportError if PyAV is not installed.
    """
    yield from map(_check, list_files(folder))


def _check(path: Path) -> CheckedFile:
    signal = AudioFile(path)
    try:
        found = sum(block.shape[1] for block in signal.blocks())
    except (ValueError, RuntimeError, OSError) as error:
        return CheckedFile(path, refused=str(error))
    try:
        expected, form = _decoded_length(path)
    except (ValueError, OSError):
        return CheckedFile(path, found)
    return CheckedFile(path, found, expected, _SLACK.get(form, 0))


def _decoded_length(path: Path) -> tuple[int, str]:
    with AvSound(path, str(path)) as sound:
        count = 0
        while size := len(sound.read(2**16)):
            count += size
        name = sound.container_format
    return count, {"mp3": "MP3", "ogg": "OGG"}.get(name, "")
