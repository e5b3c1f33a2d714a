"""`TokenizerCore`: audio in any form to codes or latents and back, without `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.audio import AudioSource, is_batch, open_audio, open_batch
from tokenizer.errors import InputError
from tokenizer.model.parts import DecoderName
from tokenizer.model.rows import (
    Row,
    SignalStream,
    apply_gain,
    as_codes,
    as_latents,
    code_dtype,
    decode_rows,
    number_in,
    stack_rows,
)
from tokenizer.model.streaming import StreamDecoder, StreamEncoder
from tokenizer.model.tensors import TensorTokenizer, as_gains


class TokenizerCore(TensorTokenizer):
    """Audio to continuous latents and discrete codes, and back.

    The methods here take files, arrays, rows and batches, and return rows
    (`tokenizer.model.rows`), as ``Dataset.map`` wants them. Those of `TensorTokenizer` take and
    return tensors.
    """

    def encode_codes(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        n_codebooks: int | None = None,
        bitrate: float | int | None = None,
        downmix: bool = False,
        gain: Any = None,
    ) -> Row:
        """Encodes audio into discrete codes.

        Args:
            audio: A path, bytes of an audio file, an array or tensor ``[N]`` or ``[C, N]``,
                ``{"array", "sampling_rate"}``, ``{"path", "bytes"}``, a torchcodec
                ``AudioDecoder``, a `datasets` row with an ``audio`` column, or a batch of these, as
                a list or as `datasets` makes it.
            sampling_rate: Hz of bare arrays. Everything is resampled to the tokenizer's rate.
            n_codebooks: How many codebooks to use. Default: all.
            bitrate: Instead of ``n_codebooks``: the most codebooks that fit into this many bit/s
                and channel.
            downmix: Whether to average the channels into one.
            gain: What the audio is divided by, for all channels or each. Default: their root mean
                square; give one to get what a stream with this gain gives.

        Returns:
            A row with ``codes``; for a batch, a list in every column.

        Raises:
            FileNotFoundError: If a named file is not there.
            ValueError: If the audio is not readable, empty, not finite or of unknown rate, or the
                gain not positive.
            RuntimeError: If no quantizer is fitted yet.
        """
        n = self.resolve_codebooks(n_codebooks, bitrate)

        def encode(source: AudioSource) -> Row:
            signal = SignalStream(self, source, gain)
            tiles = [self.quantize(z, n) for z in signal.latents()]
            codes = torch.cat(tiles, dim=-1).transpose(1, 2).flatten(0, 1).cpu().numpy()
            return {"codes": codes.astype(code_dtype(self.codebook_sizes))} | signal.row()

        return self._encode_any(audio, sampling_rate, downmix, encode)

    def encode_latents(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        downmix: bool = False,
        gain: Any = None,
    ) -> Row:
        """Encodes audio into continuous latents; arguments and errors as in `encode_codes`.

        Returns:
            A row with ``latents``; for a batch, a list in every column.
        """

        def encode(source: AudioSource) -> Row:
            signal = SignalStream(self, source, gain)
            latents = torch.cat(list(signal.latents()), dim=-1).transpose(1, 2).flatten(0, 1)
            return {"latents": latents.cpu().numpy()} | signal.row()

        return self._encode_any(audio, sampling_rate, downmix, encode)

    def resolve_codebooks(self, n_codebooks: int | None, bitrate: float | int | None) -> int:
        """The number of codebooks that ``n_codebooks`` or ``bitrate`` (not both) asks for."""
        if n_codebooks is not None and bitrate is not None:
            raise InputError(f"Give n_codebooks={n_codebooks} or bitrate={bitrate:g}, not both.")
        if bitrate is not None:
            return self.codebooks_for(bitrate)
        return self._check_n_codebooks(n_codebooks)

    # A chunk at a time

    def stream_encoder(
        self,
        *,
        gain: Any = None,
        num_channels: int = 1,
        sampling_rate: int | None = None,
        n_codebooks: int | None = None,
        bitrate: float | int | None = None,
        latents: bool = False,
    ) -> StreamEncoder:
        """Starts to encode audio that comes in chunks.

        On a CPU the codes or latents are bit for bit those that `encode_codes` or `encode_latents`
        give for the whole with the same gain (docs/exactness.md).

        Args:
            gain: What the audio is divided by, for all channels or each: about its root mean
                square, which a stream cannot know. Default: the checkpoint's ``default_gain``.
            num_channels: C of the chunks.
            sampling_rate: Hz of the chunks. Default: the tokenizer's.
            n_codebooks: As for `encode_codes`.
            bitrate: As for `encode_codes`.
            latents: Whether to give latents in place of codes.
        """
        n = None if latents else self.resolve_codebooks(n_codebooks, bitrate)
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        return StreamEncoder(self, self.check_gain(gain, num_channels), rate, n)

    def stream_decoder(
        self,
        *,
        gain: Any = None,
        num_channels: int = 1,
        decoder: DecoderName | None = None,
        latents: bool = False,
    ) -> StreamDecoder:
        """Starts to decode codes, or latents, that come in chunks.

        Args:
            gain: What the audio is multiplied by, for all channels or each: what the encoder
                divided by. Default: the checkpoint's ``default_gain``.
            num_channels: C of the audio.
            decoder: Default: the finetuned one for codes, if there is one; else the continuous one.
            latents: Whether latents come in place of codes.
        """
        name = ("continuous" if latents else self.codes_decoder) if decoder is None else decoder
        return StreamDecoder(self, self.check_gain(gain, num_channels), name, latents)

    @property
    def latency(self) -> float:
        """Seconds from a sample that enters a `stream_encoder` to the same one leaving a decoder.

        Computing and chunks come on top. Infinite for models that see the whole signal.
        """
        return self.stream_encoder(latents=True).latency + self.stream_decoder(latents=True).latency

    def _encode_any(
        self,
        audio: Any,
        sampling_rate: int | None,
        downmix: bool,
        encode: Callable[[AudioSource], Row],
    ) -> Row:
        rates = {"target_rate": self.sampling_rate, "sampling_rate": sampling_rate}
        if is_batch(audio):
            return stack_rows([encode(one) for one in open_batch(audio, downmix=downmix, **rates)])
        return encode(open_audio(audio, downmix=downmix, **rates))

    def decode_codes(self, row: Any, *, decoder: DecoderName | None = None) -> Any:
        """Decodes codes into audio.

        Args:
            row: What `encode_codes` returned, or bare codes ``[T, n]`` of one channel; the first n
                codebooks of K will do. A batch (a list in every column, or a list of rows) gives a
                list. Rows and tables of pandas are taken, too.
            decoder: Default: the finetuned one, if the checkpoint has it, else the continuous one.

        Returns:
            Float32 ``[C, N]``, exactly as long as the input was; bare codes give all samples that
            the frames cover, at the default level.
        """
        name = self.codes_decoder if decoder is None else decoder

        def decode(one: Row) -> np.ndarray:
            codes = torch.as_tensor(as_codes(one["codes"]))
            grouped = self._grouped(codes, one)
            latents = self.dequantize(grouped.transpose(1, 2))
            return self._decode_row(latents, one, name, codes.shape[1])

        return decode_rows(row, "codes", decode)

    def decode_latents(self, row: Any, *, decoder: DecoderName = "continuous") -> Any:
        """Decodes latents: a row of `encode_latents`, or bare ``[T, D]``; see `decode_codes`."""

        def decode(one: Row) -> np.ndarray:
            latents = torch.as_tensor(as_latents(one["latents"]))
            return self._decode_row(self._grouped(latents, one).transpose(1, 2), one, decoder, None)

        return decode_rows(row, "latents", decode)

    def latents_to_codes(self, row: Mapping[str, Any], *, n_codebooks: int | None = None) -> Row:
        """Quantizes a row of latents into the row that `encode_codes` gives."""
        latents = torch.as_tensor(as_latents(row["latents"]))
        grouped = self._grouped(latents, dict(row)).transpose(1, 2)
        codes = self.quantize(grouped, n_codebooks).transpose(1, 2).flatten(0, 1).cpu().numpy()
        shared = {k: row[k] for k in ("num_samples", "num_channels", "gain") if k in row}
        return {"codes": codes.astype(code_dtype(self.codebook_sizes))} | shared

    def _grouped(self, frames: Tensor, row: Row) -> Tensor:
        groups = -(-number_in(row, "num_channels", 1, low=1) // self.autoencoder.num_channels)
        if len(frames) == 0 or len(frames) % groups:
            raise InputError(
                f"{len(frames)} frames cannot be shared among {groups} channel groups; "
                "is num_channels the row's own?"
            )
        return frames.reshape(groups, -1, frames.shape[-1])

    def _decode_row(
        self, latents: Tensor, row: Row, decoder: DecoderName, n: int | None
    ) -> np.ndarray:
        joint = self.autoencoder.num_channels
        covered = self.autoencoder.num_samples(latents.shape[-1])
        num_samples = number_in(row, "num_samples", covered, low=0)
        if num_samples > covered:
            raise InputError(
                f"num_samples={num_samples}, but {latents.shape[-1]} frames cover {covered}."
            )
        num_channels = number_in(row, "num_channels", joint, low=1)
        ones = latents.new_ones(len(latents))
        audio = self.decode(latents, decoder=decoder, n_codebooks=n, gain=ones)
        wave = audio.flatten(0, 1)[:num_channels, :num_samples].cpu().numpy()
        return apply_gain(wave, as_gains(row.get("gain", self.default_gain), num_channels))
