"""Audio to codes and back on pipes, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer.audio import AudioWriter
from tokenizer.audio.pcm import PcmFormat, PcmReader, WavPipe
from tokenizer.codefile import Source, Target
from tokenizer.model.core import TokenizerCore
from tokenizer.model.parts import DecoderName
from tokenizer.transcoding.files import code_writer, file_gain, open_codes, trimmed


def encode_live(
    tokenizer: TokenizerCore,
    stream: Any,
    out: Target,
    *,
    gain: Any,
    pcm: PcmFormat | None = None,
    n_codebooks: int | None = None,
    chunk_frames: int = 25,
) -> float:
    """Encodes samples as they arrive; returns their duration in seconds.

    Args:
        tokenizer: A fitted tokenizer.
        stream: A binary stream of WAV, or of raw samples.
        out: The ``.ltk`` file, or a binary stream, which gets each record at once.
        gain: As for `LatentTokenizer.stream_encoder`.
        pcm: What raw samples are; None for WAV.
        n_codebooks: How many codebooks to use. Default: all.
        chunk_frames: Frames that are passed on together; each such record costs 11 bytes.
    """
    n = tokenizer.resolve_codebooks(n_codebooks, None)
    reader = PcmReader(stream, pcm)
    encoder = tokenizer.stream_encoder(
        gain=gain,
        num_channels=reader.pcm.num_channels,
        sampling_rate=reader.pcm.sampling_rate,
        n_codebooks=n,
    )
    with code_writer(tokenizer, out, n, encoder.gain, chunk_frames) as writer:
        writer.flush()
        for chunk in reader:
            writer.write(encoder.push(chunk))
            writer.flush()
        writer.write(encoder.finish())
        writer.finish(encoder.num_samples)
    return encoder.num_samples / tokenizer.sampling_rate


def decode_live(
    tokenizer: TokenizerCore,
    codes: Source,
    out: str | Path | Any,
    *,
    n_codebooks: int | None = None,
    decoder: DecoderName | None = None,
    subtype: str | None = None,
) -> float:
    """Decodes codes as they arrive; returns the duration in seconds.

    Arguments are those of `decode_file`; ``codes`` and ``out`` may be binary streams, of which the
    second gets WAV of 16 bits.

    Raises:
        CodeFileError: If the codes are damaged, cut off or another model's. What came before has
            been passed on to a stream by then; a file is not left.
    """
    with open_codes(codes, tokenizer, n_codebooks) as (reader, n):
        gain = file_gain(reader.header)
        rate = reader.header.sampling_rate
        stream = tokenizer.stream_decoder(
            gain=gain if tokenizer.autoencoder.normalize else None,
            num_channels=len(gain),
            decoder=decoder,
        )

        def blocks() -> Iterator[np.ndarray]:
            chunk = None
            for chunk in reader.chunks():
                yield stream.push(chunk[..., :n])
            if chunk is not None:
                yield stream.finish()

        writer = (
            WavPipe(out, rate, len(gain))
            if hasattr(out, "write")
            else AudioWriter(out, rate, len(gain), subtype=subtype)
        )
        num_samples = 0
        with writer:
            for block in trimmed(blocks(), reader, tokenizer.hop_length):
                writer.write(block)
                num_samples += block.shape[1]
    return num_samples / rate
