"""Audio files to code files and back, in bounded memory, and rows to code files and back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenizer.audio import AudioWriter, open_audio
from tokenizer.codefile import CodeFileError, CodeFileHeader, CodeReader, CodeWriter, Source, Target
from tokenizer.errors import InputError
from tokenizer.model.core import TokenizerCore
from tokenizer.model.gains import as_gains
from tokenizer.model.parts import DecoderName
from tokenizer.model.rows import Row, SignalStream, apply_gain


def code_writer(
    tokenizer: TokenizerCore, out: Target, n: int, gain: np.ndarray, chunk_frames: int = 1024
) -> CodeWriter:
    """A writer of this tokenizer's codes, of n codebooks, for channels of these gains."""
    counts = tokenizer.code_counts
    header = CodeFileHeader(
        model_fingerprint=tokenizer.codes_fingerprint,
        sampling_rate=tokenizer.sampling_rate,
        hop_length=tokenizer.hop_length,
        num_channels=len(gain),
        num_groups=-(-len(gain) // tokenizer.autoencoder.num_channels),
        codebook_sizes=tokenizer.codebook_sizes[:n],
        gains=tuple(gain.tolist()) if tokenizer.autoencoder.normalize else (),
        entropy="packed" if counts is None else "static",
        chunk_frames=chunk_frames,
    )
    return CodeWriter(out, header, counts)


def write_row(target: Target, row: Row, tokenizer: TokenizerCore) -> int:
    """Writes a row of `LatentTokenizer.encode_codes` as a code file; returns its size in bytes."""
    codes = np.asarray(row["codes"])
    gain = as_gains(row["gain"], int(row["num_channels"]))
    with code_writer(tokenizer, target, codes.shape[1], gain) as writer:
        writer.write(codes.reshape(writer.header.num_groups, -1, codes.shape[1]))
        writer.finish(int(row["num_samples"]))
    return writer.num_bytes


def coded_size(row: Row, tokenizer: TokenizerCore) -> int:
    """The size in bytes of the file that `write_row` would write."""
    return write_row(io.BytesIO(), row, tokenizer)


@contextmanager
def open_codes(
    source: Source, tokenizer: TokenizerCore, n_codebooks: int | None
) -> Iterator[tuple[CodeReader, int]]:
    """A reader of a code file that this tokenizer can decode, and how many codebooks to use."""
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
    """Cuts off what is beyond the signal's end, which a pipe tells last: a frame is held back.

    ``blocks`` are decoded samples ``[C, n]``; the last one has read ``reader`` to its end.
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
    tokenizer: TokenizerCore,
    audio: Any,
    out: Target,
    *,
    n_codebooks: int | None = None,
    downmix: bool = False,
    gain: Any = None,
    progress: bool = False,
) -> float:
    """Encodes audio of any length into a code file, in bounded memory; returns its seconds.

    Args:
        tokenizer: A fitted tokenizer.
        audio: A path, or any other form that `LatentTokenizer.encode_codes` takes.
        out: The ``.ltk`` file to write, or a binary stream.
        n_codebooks: How many codebooks to use. Default: all.
        downmix: Whether to average the channels into one.
        gain: As for `LatentTokenizer.encode_codes`.
        progress: Whether to show a bar.
    """
    n = tokenizer.resolve_codebooks(n_codebooks, None)
    source = open_audio(audio, target_rate=tokenizer.sampling_rate, downmix=downmix)
    signal = SignalStream(tokenizer, source, gain)
    frames = tokenizer.autoencoder.num_frames(signal.num_samples)
    with (
        code_writer(tokenizer, out, n, signal.gain) as writer,
        tqdm(total=frames, desc="encode", unit="frame", disable=not progress) as bar,
    ):
        for latents in signal.latents():
            codes = tokenizer.quantize(latents, n).transpose(1, 2)
            writer.write(codes.cpu().numpy())
            bar.update(codes.shape[1])
        writer.finish(signal.num_samples)
    return signal.num_samples / tokenizer.sampling_rate


def decode_file(
    tokenizer: TokenizerCore,
    codes: Source,
    out: str | Path,
    *,
    n_codebooks: int | None = None,
    decoder: DecoderName | None = None,
    subtype: str | None = None,
    progress: bool = False,
) -> float:
    """Decodes a code file into an audio file, in bounded memory; returns its seconds.

    Args:
        tokenizer: The tokenizer whose encoder and quantizer made the codes.
        codes: The ``.ltk`` file.
        out: The audio file to write; its suffix decides the format (`write_audio`).
        n_codebooks: Use only the first so many codebooks of the file. Default: all.
        decoder: Default: the finetuned one, if there is one.
        subtype: soundfile's name of an encoding, e.g. "FLOAT" for WAV. Default: the format's usual.
        progress: Whether to show a bar.

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

        rate = header.sampling_rate
        writer = AudioWriter(out, rate, len(gain), subtype=subtype, num_samples=num_samples)
        blocks = (
            audio.flatten(0, 1)[: len(gain)].cpu().numpy()
            for audio in tokenizer.decode_stream(latents(), name, n)
        )
        with bar, writer:
            for block in trimmed(blocks, reader, tokenizer.hop_length):
                writer.write(apply_gain(block, gain))
    return num_samples / rate
