"""Audio files to code files and back, in bounded memory, and rows to code files and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenizer.audio import AudioWriter, open_audio
from tokenizer.codefile import (
    CodeFileError,
    CodeFileHeader,
    CodeReader,
    CodeWriter,
    Source,
    Target,
    read_info,
)
from tokenizer.errors import InputError, MissingFileError
from tokenizer.model.core import DecoderName
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.rows import Row, SignalStream, apply_gain, code_dtype


def file_header(
    tokenizer: LatentTokenizer,
    n_codebooks: int,
    num_channels: int,
    gain: np.ndarray,
    *,
    fingerprint: str | None = None,
) -> CodeFileHeader:
    """What a code file of this tokenizer says about codes that are yet to come."""
    joint = tokenizer.autoencoder.num_channels
    return CodeFileHeader(
        model_fingerprint=tokenizer.codes_fingerprint if fingerprint is None else fingerprint,
        sampling_rate=tokenizer.sampling_rate,
        hop_length=tokenizer.hop_length,
        num_channels=num_channels,
        num_groups=-(-num_channels // joint),
        codebook_sizes=tokenizer.codebook_sizes[:n_codebooks],
        gains=tuple(gain.tolist()) if tokenizer.autoencoder.normalize else (),
        entropy="packed" if tokenizer.code_counts is None else "static",
    )


def write_row(target: Target, row: Row, tokenizer: LatentTokenizer) -> int:
    """Writes a row of `LatentTokenizer.encode_codes` as a code file; returns its size in bytes."""
    return _write_row(target, row, tokenizer)


def coded_size(row: Row, tokenizer: LatentTokenizer) -> int:
    """The size in bytes of the file that `write_row` would write."""
    # Whatever the fingerprint, its size is this; to compute it all weights are hashed, which takes
    # longer than to code a clip.
    return _write_row(io.BytesIO(), row, tokenizer, fingerprint="0" * 16)


def _write_row(
    target: Target, row: Row, tokenizer: LatentTokenizer, fingerprint: str | None = None
) -> int:
    codes = np.asarray(row["codes"])
    gain = np.asarray(row["gain"], dtype=np.float32)
    num_channels = int(row["num_channels"])
    header = file_header(tokenizer, codes.shape[1], num_channels, gain, fingerprint=fingerprint)
    grouped = codes.reshape(header.num_groups, -1, codes.shape[1])
    header = replace(header, num_samples=int(row["num_samples"]))
    with CodeWriter(target, header, tokenizer.code_counts) as writer:
        writer.write(grouped)
    return writer.num_bytes


def read_row(source: Source, tokenizer: LatentTokenizer) -> Row:
    """Reads a code file as a row for `LatentTokenizer.decode_codes`.

    Raises:
        CodeFileError: If the file is damaged, or not of this tokenizer's encoder and quantizer.
    """
    with open_codes(source, tokenizer) as reader:
        codes = reader.read_all()
        header = reader.header
    return {
        "codes": codes.reshape(-1, codes.shape[-1]).astype(code_dtype(header.codebook_sizes)),
        "num_samples": header.num_samples,
        "num_channels": header.num_channels,
        "gain": file_gain(header),
    }


def open_codes(source: Source, tokenizer: LatentTokenizer) -> CodeReader:
    """Opens a code file that this tokenizer can decode."""
    return CodeReader(
        source, tokenizer.code_counts, expected_fingerprint=tokenizer.codes_fingerprint
    )


def file_gain(header: CodeFileHeader) -> np.ndarray:
    """The gain of each channel; 1 where the file says none."""
    return np.array(header.gains or (1.0,) * header.num_channels, dtype=np.float32)


def encode_file(
    tokenizer: LatentTokenizer,
    audio: Any,
    out: Target,
    *,
    n_codebooks: int | None = None,
    downmix: bool = False,
    gain: Any = None,
    progress: bool = False,
) -> float:
    """Encodes audio of any length into a code file, in bounded memory.

    Args:
        tokenizer: A fitted tokenizer.
        audio: A path, or any other form that `LatentTokenizer.encode_codes` takes.
        out: The ``.ltk`` file to write, or a binary stream.
        n_codebooks: How many codebooks to use. Default: all.
        downmix: Whether to average the channels into one.
        gain: As for `LatentTokenizer.encode_codes`.
        progress: Whether to show a bar.

    Returns:
        The duration in seconds.
    """
    n = tokenizer.resolve_codebooks(n_codebooks, None)
    source = open_audio(audio, target_rate=tokenizer.sampling_rate, downmix=downmix)
    signal = SignalStream(tokenizer, source, gain)
    header = file_header(tokenizer, n, signal.num_channels, signal.gain)
    frames = tokenizer.autoencoder.num_frames(signal.num_samples)
    with (
        CodeWriter(out, header, tokenizer.code_counts) as writer,
        tqdm(total=frames, desc="encode", unit="frame", disable=not progress) as bar,
    ):
        for latents in signal.latents():
            codes = tokenizer.quantize(latents, n).transpose(1, 2)
            writer.write(codes.cpu().numpy())
            bar.update(codes.shape[1])
        writer.finish(signal.num_samples)
    return signal.num_samples / tokenizer.sampling_rate


def decode_file(
    tokenizer: LatentTokenizer,
    codes: Source,
    out: str | Path,
    *,
    n_codebooks: int | None = None,
    decoder: DecoderName | None = None,
    subtype: str | None = None,
    progress: bool = False,
) -> float:
    """Decodes a code file into an audio file, in bounded memory.

    Args:
        tokenizer: The tokenizer whose encoder and quantizer made the codes.
        codes: The ``.ltk`` file.
        out: The audio file to write; its suffix decides the format
        (`tokenizer.audio.source.AudioWriter`).
        n_codebooks: Use only the first so many codebooks of the file. Default: all.
        decoder: Default: the finetuned one, if there is one.
        subtype: soundfile's name of an encoding, e.g. "FLOAT" for WAV. Default: the format's usual.
        progress: Whether to show a bar.

    Returns:
        The duration in seconds.

    Raises:
        CodeFileError: If the file is damaged, or not of this tokenizer's encoder and quantizer.
        ValueError: If there are fewer codebooks, or the format cannot hold such audio.
    """
    with open_codes(codes, tokenizer) as reader:
        header = reader.header
        n = len(header.codebook_sizes) if n_codebooks is None else n_codebooks
        if not 1 <= n <= len(header.codebook_sizes):
            raise InputError(f"n_codebooks={n} is not in 1..{len(header.codebook_sizes)}.")
        num_frames, num_samples = header.num_frames, header.num_samples
        if num_frames is None or num_samples is None:
            raise CodeFileError("A pipe cannot be read twice: `latok decode -` decodes one.")
        if tokenizer.autoencoder.num_samples(num_frames) < num_samples:
            raise CodeFileError(f"{num_frames} frames do not cover {num_samples} samples.")
        gain = file_gain(header)
        with tqdm(total=num_frames, desc="decode", unit="frame", disable=not progress) as bar:

            def latents() -> Iterator[Tensor]:
                for chunk in reader.chunks():
                    yield tokenizer.dequantize(torch.from_numpy(chunk[..., :n]).transpose(1, 2))
                    bar.update(chunk.shape[1])

            name = tokenizer.codes_decoder if decoder is None else decoder
            written = 0
            with AudioWriter(
                out,
                header.sampling_rate,
                header.num_channels,
                subtype=subtype,
                num_samples=num_samples,
            ) as w:
                for audio in tokenizer.decode_stream(latents(), name, n):
                    wave = audio.flatten(0, 1)[: header.num_channels].cpu().numpy()
                    wave = apply_gain(wave[:, : num_samples - written], gain)
                    if wave.shape[1]:
                        w.write(wave)
                    written += wave.shape[1]
    return num_samples / header.sampling_rate


def describe(what: str | Path | None) -> dict[str, Any]:
    """What a code file, or a tokenizer (None: the bundled one), is; for people to read."""
    if what is not None and Path(what).is_file():
        info = read_info(what)
        h = info.header
        return {
            "file": str(what),
            "model": h.model_fingerprint,
            "duration": f"{info.seconds:.3f} s, {h.num_samples} samples at {h.sampling_rate} Hz",
            "channels": h.num_channels,
            "frames": f"{h.num_frames} at {h.sampling_rate / h.hop_length:.2f} Hz",
            "codebooks": f"{len(h.codebook_sizes)} of {sorted(set(h.codebook_sizes))} entries",
            "bitrate": f"{info.bitrate / 1000:.3f} kbit/s in {info.num_bytes} bytes",
            "range-coded chunks": f"{info.num_static_chunks} of {info.num_chunks}",
        }
    if what is not None and not Path(what).exists() and Path(what).suffix == ".ltk":
        raise MissingFileError(f"No such file: {what}.")
    from tokenizer.model.loading import load_tokenizer

    tokenizer = load_tokenizer(what)
    found: dict[str, Any] = {
        "tokenizer": "bundled" if what is None else str(what),
        "fingerprint": tokenizer.fingerprint,
        "autoencoder": tokenizer.autoencoder.kind,
        "parameters": f"{sum(p.numel() for p in tokenizer.parameters()) / 1e6:.1f} M",
        "audio": f"{tokenizer.sampling_rate} Hz, coded {tokenizer.autoencoder.num_channels} "
        "channel(s) at a time",
        "latents": f"{tokenizer.latent_dim} dimensions at {tokenizer.frame_rate:.2f} Hz",
    }
    if tokenizer.quantizer is None:
        return found | {"quantizer": "none yet: latok fit"}
    return found | {
        "quantizer": tokenizer.quantizer.kind,
        "codebooks": f"{tokenizer.num_codebooks} of {sorted(set(tokenizer.codebook_sizes))} "
        "entries",
        "bitrate": f"{tokenizer.bitrate(1) / 1000:.3f} to {tokenizer.bitrate() / 1000:.3f} kbit/s",
        "decoders": "continuous" + (", finetuned" if tokenizer.finetuned_decoder else ""),
    }
