"""Audio files to code files and back, in bounded memory, and rows to code files and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
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
)
from tokenizer.errors import InputError
from tokenizer.model.core import DecoderName
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.rows import Row, SignalStream, apply_gain


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
    codes = np.asarray(row["codes"])
    gain = np.asarray(row["gain"], dtype=np.float32)
    header = file_header(tokenizer, codes.shape[1], int(row["num_channels"]), gain)
    header = replace(header, num_samples=int(row["num_samples"]))
    with CodeWriter(target, header, tokenizer.code_counts) as writer:
        writer.write(codes.reshape(header.num_groups, -1, codes.shape[1]))
    return writer.num_bytes


def coded_size(row: Row, tokenizer: LatentTokenizer) -> int:
    """The size in bytes of the file that `write_row` would write."""
    return write_row(io.BytesIO(), row, tokenizer)


@contextmanager
def open_codes(
    source: Source, tokenizer: LatentTokenizer, n_codebooks: int | None
) -> Iterator[tuple[CodeReader, int]]:
    """Opens a code file that this tokenizer can decode.

    Args:
        source: The code file.
        tokenizer: What will decode it.
        n_codebooks: How many of its codebooks to use. None: all.

    Yields:
        A reader, and the number of codebooks.

    Raises:
        CodeFileError: If the file is damaged, or not of this tokenizer's encoder and quantizer.
        ValueError: If it has fewer codebooks.
    """
    expected = tokenizer.codes_fingerprint
    with CodeReader(source, tokenizer.code_counts, expected_fingerprint=expected) as reader:
        available = len(reader.header.codebook_sizes)
        n = available if n_codebooks is None else n_codebooks
        if not 1 <= n <= available:
            raise InputError(f"n_codebooks={n} is not in 1..{available}.")
        yield reader, n


def file_gain(header: CodeFileHeader) -> np.ndarray:
    """The gain of each channel; 1 where the file has none."""
    return np.array(header.gains or (1.0,) * header.num_channels, dtype=np.float32)


def trimmed(
    blocks: Iterator[np.ndarray], reader: CodeReader, hop_length: int
) -> Iterator[np.ndarray]:
    """Cuts off what is beyond the signal's end, which a pipe tells last.

    A frame is held back for that.

    Args:
        blocks: Decoded samples ``[C, n]``.
        reader: Of the codes; read to its end by the last block.
        hop_length: Samples of a frame.
    """
    num_passed = 0
    held: np.ndarray | None = None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=1)
        num_ready = held.shape[1] - hop_length
        if num_ready > 0:
            num_passed += num_ready
            yield held[:, :num_ready]
            held = held[:, num_ready:]
    num_samples = reader.info.header.num_samples or 0
    missing = num_samples - num_passed
    if held is None or not 0 <= missing <= held.shape[1]:
        raise CodeFileError(f"The frames do not cover {num_samples} samples.")
    if missing:
        yield held[:, :missing]


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
    signal = SignalStream.measure(tokenizer, source, gain)
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
    with open_codes(codes, tokenizer, n_codebooks) as (reader, n):
        header = reader.header
        num_frames, num_samples = header.num_frames, header.num_samples
        if num_frames is None or num_samples is None:
            raise CodeFileError("A pipe cannot be read twice: `latok decode -` decodes one.")
        if tokenizer.autoencoder.num_samples(num_frames) < num_samples:
            raise CodeFileError(f"{num_frames} frames do not cover {num_samples} samples.")
        gain = file_gain(header)
        name = tokenizer.codes_decoder if decoder is None else decoder
        bar = tqdm(total=num_frames, desc="decode", unit="frame", disable=not progress)

        def latents() -> Iterator[Tensor]:
            for chunk in reader.chunks():
                yield tokenizer.dequantize(torch.from_numpy(chunk[..., :n]).transpose(1, 2))
                bar.update(chunk.shape[1])

        writer = AudioWriter(
            out, header.sampling_rate, len(gain), subtype=subtype, num_samples=num_samples
        )
        blocks = (
            audio.flatten(0, 1)[: len(gain)].cpu().numpy()
            for audio in tokenizer.decode_stream(latents(), name, n)
        )
        with bar, writer:
            for block in trimmed(blocks, reader, tokenizer.hop_length):
                writer.write(apply_gain(block, gain))
    return num_samples / header.sampling_rate
