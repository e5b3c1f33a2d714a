"""`latok demo`: one file, heard at every rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenizer.audio import open_audio, read_beginning, write_audio
from tokenizer.evaluation.coding import Condition, code_clip, usual_bitrates
from tokenizer.evaluation.evaluate import as_table
from tokenizer.evaluation.metrics import quality
from tokenizer.evaluation.report.pictures import plot_spectrogram, spectrogram_db
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.saving import writing
from tokenizer.transcoding.files import write_row

EXAMPLE = Path(__file__).parents[1] / "assets" / "example.flac"
MAX_SECONDS = 60


def run_demo(tokenizer: LatentTokenizer, audio: str | Path | None, out: Path) -> str:
    """Writes a clip's reconstructions, code files and a picture; returns a table of their quality.

    Args:
        tokenizer: A fitted tokenizer.
        audio: File; only its first minute is used. None for the example clip.
        out: Folder for ``original.wav``, ``continuous.wav``, for each of `usual_bitrates`
            ``3kbps.wav`` and ``3kbps.ltk`` and the like, and ``spectrograms.png``.
    """
    source = open_audio(EXAMPLE if audio is None else audio, target_rate=tokenizer.sampling_rate)
    original, _ = read_beginning(source, MAX_SECONDS)
    seconds = original.shape[-1] / tokenizer.sampling_rate
    out.mkdir(parents=True, exist_ok=True)
    pcm_bytes = original.size * 2
    rows = [["original, 16-bit", f"{pcm_bytes:,}", f"{8e-3 * pcm_bytes / seconds:.1f}", "", ""]]
    clips = {"continuous": code_clip(tokenizer, original, Condition(None, "continuous"))}
    for bitrate in reversed(usual_bitrates(tokenizer)):
        condition = Condition(tokenizer.codebooks_for(bitrate), tokenizer.codes_decoder)
        name = f"{bitrate / 1000:.3g}kbps"
        clips[name] = code_clip(tokenizer, original, condition)
        write_row(out / f"{name}.ltk", clips[name].row, tokenizer)
    for name, coded in clips.items():
        size = ["", ""] if coded.codes is None else [f"{coded.num_bytes:,}", f"{coded.kbps:.1f}"]
        m = quality(coded.audio, original, tokenizer.sampling_rate)
        rows.append([name, *size, f"{m['si_sdr']:.2f}", f"{m['mel']:.3f}"])
    sounds = {"original": original} | {name: coded.audio for name, coded in clips.items()}
    for name, wave in sounds.items():
        write_audio(out / f"{name}.wav", wave, tokenizer.sampling_rate)
    draw_spectrograms(sounds, tokenizer.sampling_rate, out / "spectrograms.png")
    table = as_table(rows, ["", "bytes", "kbit/s", "SI-SDR dB", "mel distance"])
    return f"{table}\n\nListen to and look at {out}/: *.wav, *.ltk, spectrograms.png"


def draw_spectrograms(sounds: dict[str, np.ndarray], sampling_rate: int, path: Path) -> None:
    """Draws the spectrograms of sounds, one above the other in the colours of the first, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2 * len(sounds)), layout="constrained")
    loudest = float(spectrogram_db(next(iter(sounds.values())), sampling_rate).max())
    axes = figure.subplots(len(sounds), 1, squeeze=False)[:, 0]
    for axis, (name, wave) in zip(axes, sounds.items(), strict=True):
        image = plot_spectrogram(axis, wave, sampling_rate, loudest, title=name)
        axis.label_outer()
        figure.colorbar(image, ax=axis, label="dB")
    with writing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
