"""`TokenizerCore`: audio in any form to codes or latents and back, without `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from tokenizer.audio import AudioSource, is_batch, open_audio, open_batch
from tokenizer.errors import InputError
from tokenizer.model.gains import as_gains
from tokenizer.model.parts import DecoderName
from tokenizer.model.routes import not_finite
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
from tokenizer.model.tensors import TensorTokenizer
from tokenizer.precision import full_float32, networks_in


@dataclass(frozen=True)
class _Item:
    """A row to be decoded.

    Attributes:
        frames: Codes or latents ``[G, T, n]``.
        num_samples: N.
        num_channels: C.
        gain: What each channel is multiplied by.
    """

    frames: Shaped[np.ndarray, "G T n"]
    num_samples: int
    num_channels: int
    gain: Float32[np.ndarray, " C"]

    def finished(self, wave: Float32[np.ndarray, "C2 N2"]) -> Float32[np.ndarray, "C N"]:
        """What was decoded, cut to the row's size and at its level."""
        audio = wave[: self.num_channels, : self.num_samples]
        if not np.isfinite(audio).all():
            raise InputError(not_finite("The decoded audio"))
        return apply_gain(audio, self.gain)


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
        dtype = torch.from_numpy(np.zeros(0, code_dtype(self.codebook_sizes))).dtype

        def finish(z: Tensor) -> Tensor:
            return self.quantize(z, n).to(dtype)

        return self._encode_any("codes", audio, sampling_rate, downmix, gain, finish)

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
        return self._encode_any("latents", audio, sampling_rate, downmix, gain, lambda z: z)

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

    @torch.no_grad()
    @full_float32()
    def _encode_any(
        self,
        column: str,
        audio: Any,
        sampling_rate: int | None,
        downmix: bool,
        gain: Any,
        finish: Callable[[Tensor], Tensor],
    ) -> Row:
        """Rows whose ``column`` is what ``finish`` makes of latents ``[G, D, t]``."""
        rates = {"target_rate": self.sampling_rate, "sampling_rate": sampling_rate}
        batched = is_batch(audio)
        sources = (open_batch if batched else _open_one)(audio, downmix=downmix, **rates)
        # Made when the route asks for them: in turn, one is in memory at a time.
        signals = (SignalStream(self, source, gain) for source in sources)
        with networks_in(self.network_dtype, self.device):
            rows = [
                {column: frames} | signal.row()
                for signal, frames in self.route.frames(signals, finish)
            ]
        return stack_rows(rows) if batched else rows[0]

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

        def decode(rows: list[Row]) -> list[np.ndarray]:
            items = [self._item(as_codes(one["codes"]), one) for one in rows]
            return self._waves(items, name, coded=True)

        return decode_rows(row, "codes", decode)

    def decode_latents(self, row: Any, *, decoder: DecoderName = "continuous") -> Any:
        """Decodes latents: a row of `encode_latents`, or bare ``[T, D]``; see `decode_codes`."""

        def decode(rows: list[Row]) -> list[np.ndarray]:
            items = [self._item(as_latents(one["latents"]), one) for one in rows]
            for item in items:
                if not np.isfinite(item.frames).all():
                    raise InputError("latents hold NaN or infinite values.")
            return self._waves(items, decoder, coded=False)

        return decode_rows(row, "latents", decode)

    def latents_to_codes(self, row: Mapping[str, Any], *, n_codebooks: int | None = None) -> Row:
        """Quantizes a row of latents into the row that `encode_codes` gives."""
        item = self._item(as_latents(row["latents"]), dict(row))
        grouped = torch.from_numpy(item.frames).transpose(1, 2)
        codes = self.quantize(grouped, n_codebooks).transpose(1, 2).flatten(0, 1).cpu().numpy()
        shared = {k: row[k] for k in ("num_samples", "num_channels", "gain") if k in row}
        return {"codes": codes.astype(code_dtype(self.codebook_sizes))} | shared

    def _item(self, frames: np.ndarray, row: Row) -> _Item:
        """Frames ``[G * T, n]`` and what a row says of them, checked."""
        model = self.autoencoder
        num_channels = number_in(row, "num_channels", model.num_channels, low=1)
        groups = -(-num_channels // model.num_channels)
        if len(frames) == 0 or len(frames) % groups:
            raise InputError(
                f"{len(frames)} frames cannot be shared among {groups} channel groups; "
                "is num_channels the row's own?"
            )
        grouped = frames.reshape(groups, -1, frames.shape[-1])
        covered = model.num_samples(grouped.shape[1])
        num_samples = number_in(row, "num_samples", covered, low=0)
        if num_samples > covered:
            raise InputError(
                f"num_samples={num_samples}, but {grouped.shape[1]} frames cover {covered}."
            )
        gain = as_gains(row.get("gain", self.default_gain), num_channels)
        return _Item(grouped, num_samples, num_channels, gain)

    @torch.no_grad()
    @full_float32()
    def _waves(self, items: list[_Item], name: DecoderName, *, coded: bool) -> list[np.ndarray]:
        """Decodes items, whose frames are codes or latents."""
        decoder, waves = self.decoder(name), {}
        begin = self.dequantize if coded else self.pad_detail
        for width in {item.frames.shape[2] for item in items}:
            alike = [i for i, item in enumerate(items) if item.frames.shape[2] == width]
            level = self.noise_tensor(width if coded else None)
            frames = [items[i].frames for i in alike]
            for i, wave in zip(alike, self.route.waves(frames, begin, decoder, level), strict=True):
                waves[i] = items[i].finished(wave)
        return [waves[i] for i in range(len(items))]


def _open_one(audio: Any, **options: Any) -> list[AudioSource]:
    return [open_audio(audio, **options)]
