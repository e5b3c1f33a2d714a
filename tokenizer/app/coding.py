"""One file through a tokenizer, as the app shows it: sounds, pictures, code file, figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tokenizer.audio import open_audio, read_beginning, write_audio
from tokenizer.evaluation.coding import Condition, code_clip, decode_row
from tokenizer.evaluation.metrics import mel_distance, si_sdr
from tokenizer.evaluation.report.pictures import draw_spectrogram, spectrogram_db
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.transcoding.files import write_row

MAX_SECONDS = 60
# Further channels are left out.
MAX_CHANNELS = 2


@dataclass(frozen=True)
class SoundFiles:
    """A WAV file with its spectrogram, a PNG file."""

    audio: Path
    picture: Path


@dataclass(frozen=True)
class CodingResult:
    """What the app shows of a file: its beginning, as it is and as the tokenizer coded it."""

    original: SoundFiles
    continuous: SoundFiles
    coded: SoundFiles
    codes: Path  # picture of the codes
    code_file: Path
    figures: dict[str, dict[str, float]]  # of "continuous" and "coded": kbps, si_sdr in dB, mel
    notes: tuple[str, ...]  # what was left out


def code_audio(
    tokenizer: LatentTokenizer, audio: str | Path, n_codebooks: int, folder: Path
) -> CodingResult:
    """Codes the beginning of a file in both ways and writes sounds, pictures and the code file.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is not readable audio, or there are fewer codebooks.
    """
    rate = tokenizer.sampling_rate
    wave, more = read_beginning(open_audio(audio, target_rate=rate), MAX_SECONDS)
    notes = [f"Only the first {MAX_SECONDS} seconds."] if more else []
    if len(wave) > MAX_CHANNELS:
        notes.append(f"Only the first {MAX_CHANNELS} of {len(wave)} channels.")
    wave = np.ascontiguousarray(wave[:MAX_CHANNELS])
    continuous = code_clip(tokenizer, wave, Condition(None, "continuous"))
    row = tokenizer.latents_to_codes(continuous.row, n_codebooks=n_codebooks)
    coded = decode_row(tokenizer, row, tokenizer.codes_decoder)
    code_file = folder / f"{Path(audio).stem or 'audio'}.ltk"
    write_row(code_file, row, tokenizer)
    figures, sounds, target = {}, {"original": wave}, torch.from_numpy(wave)
    for name, clip in (("continuous", continuous), ("coded", coded)):
        estimate = torch.from_numpy(clip.audio)
        sounds[name], mel = clip.audio, mel_distance(estimate, target, rate)
        figures[name] = {"kbps": clip.kbps, "si_sdr": si_sdr(estimate, target), "mel": mel}
    # One scale for all three, so that what is missing looks darker.
    loudest = float(spectrogram_db(wave, rate).max())
    files = {name: show(sound, rate, folder / name, loudest) for name, sound in sounds.items()}
    picture = folder / "codes.png"
    draw_codes(row["codes"], tokenizer.codebook_sizes, picture)
    return CodingResult(
        **files, codes=picture, code_file=code_file, figures=figures, notes=tuple(notes)
    )


def show(
    wave: np.ndarray, sampling_rate: int, name: Path, loudest: float | None = None
) -> SoundFiles:
    """Writes audio ``[C, N]`` as WAV and PNG; ``name`` is the files' path without endings.

    ``loudest`` is the level in dB of the brightest colour, by default that of this sound.
    """
    files = SoundFiles(name.with_suffix(".wav"), name.with_suffix(".png"))
    write_audio(files.audio, wave, sampling_rate)
    draw_spectrogram(wave, sampling_rate, files.picture, loudest)
    return files


def draw_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...], path: Path) -> None:
    """Draws codes ``[T, n]`` as PNG: time to the right, the first codebook at the bottom."""
    from matplotlib import colormaps
    from PIL import Image

    share = codes / (np.asarray(codebook_sizes[: codes.shape[1]]) - 1).clip(min=1)
    frames = np.linspace(0, len(codes) - 1, min(len(codes), 960)).round().astype(int)
    colours = colormaps["viridis"](share[frames].T[::-1])[..., :3]
    image = Image.fromarray(np.rint(255 * colours).astype(np.uint8))
    image.resize((960, 14 * codes.shape[1]), Image.Resampling.NEAREST).save(path, format="PNG")
