"""The dataset surface of the tokenizer: files, arrays and rows in, rows out, and back.

Rows are plain mappings of NumPy arrays and numbers, so that ``Dataset.map(tokenizer.encode_codes)``
takes them as they are. Time comes first, because Arrow's arrays may grow on their first axis only:

    codes        int16 [T, K]     (int32 for codebooks of more than 32,768 entries)
    latents      float32 [T, D]
    gain         float32 [C]      root mean square that each channel was divided by
    num_samples  int              N, at the tokenizer's sampling rate
    num_channels int              C

Models that code one channel code each channel as if it were alone, and their frames follow one
another: ``[C * T, K]``. Stereo models code channels in pairs; an odd last channel is paired with
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.audio import AudioSource
from tokenizer.inputs import is_batch, open_audio, open_batch

if TYPE_CHECKING:
    from tokenizer.model import DecoderName, LatentTokenizer

Row = dict[str, Any]


def _code_dtype(codebook_sizes: Sequence[int]) -> type[np.signedinteger]:
    return np.int16 if max(codebook_sizes) <= 2**15 else np.int32


def _stack(rows: list[Row]) -> Row:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


class SignalStream:
    """One signal on its way in: its gain is measured, then it can be read as latents.

    Attributes:
        gain: Float32 ``[C]``.
        num_channels: C.
        num_samples: N.
    """

    def __init__(self, tokenizer: LatentTokenizer, source: AudioSource) -> None:
        self._tokenizer, self._source = tokenizer, source
        self.num_channels = source.num_channels
        squares = np.zeros(self.num_channels)
        self.num_samples = 0
        for block in source.blocks():
            squares += np.square(block, dtype=np.float64).sum(-1)
            self.num_samples += block.shape[-1]
        if self.num_samples == 0:
            raise ValueError(f"{source.name} holds no samples: there is nothing to encode.")
        means = squares / self.num_samples
        self.gain = np.array([tokenizer.measure_gain(m) for m in means], dtype=np.float32)

    @property
    def num_groups(self) -> int:
        """Groups of jointly coded channels."""
        return -(-self.num_channels // self._tokenizer.autoencoder.num_channels)

    def _blocks(self) -> Iterator[Tensor]:
        joint = self._tokenizer.autoencoder.num_channels
        device = self._tokenizer.device
        for block in self._source.blocks():
            x = torch.from_numpy(np.asarray(block / self.gain[:, None], dtype=np.float32)).to(
                device
            )
            missing = self.num_groups * joint - len(x)
            if missing:
                x = torch.cat([x, x[-1:].expand(missing, -1)])
            yield x.reshape(self.num_groups, joint, -1)

    def latents(self) -> Iterator[Tensor]:
        """Yields ``[G, D, t]``, a tile at a time, in bounded memory."""
        return self._tokenizer.encode_stream(self._blocks())

    def row(self) -> Row:
        """The columns that codes and latents share."""
        return {
            "num_samples": self.num_samples,
            "num_channels": self.num_channels,
            "gain": self.gain,
        }


class RowMethods:
    """Mixed into `tokenizer.LatentTokenizer`; see the module's docstring for what a row is."""

    def encode_codes(
        self: LatentTokenizer,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        n_codebooks: int | None = None,
        bitrate: float | int | None = None,
        downmix: bool = False,
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

        Returns:
            A row with ``codes``; for a batch, a list in every column.

        Raises:
            FileNotFoundError: If a named file is not there.
            ValueError: If the audio is not readable, empty, not finite or of unknown rate.
            RuntimeError: If no quantizer is fitted yet.
        """
        n = self.resolve_codebooks(n_codebooks, bitrate)

        def encode(source: AudioSource) -> Row:
            signal = SignalStream(self, source)
            tiles = [self.quantize(z, n) for z in signal.latents()]
            codes = torch.cat(tiles, dim=-1).transpose(1, 2).flatten(0, 1).cpu().numpy()
            return {"codes": codes.astype(_code_dtype(self.codebook_sizes))} | signal.row()

        return self._encode_any(audio, sampling_rate, downmix, encode)

    def encode_latents(
        self: LatentTokenizer,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        downmix: bool = False,
    ) -> Row:
        """Encodes audio into continuous latents; arguments and errors as in `encode_codes`.

        Returns:
            A row with ``latents``; for a batch, a list in every column.
        """

        def encode(source: AudioSource) -> Row:
            signal = SignalStream(self, source)
            latents = torch.cat(list(signal.latents()), dim=-1).transpose(1, 2).flatten(0, 1)
            return {"latents": latents.cpu().numpy()} | signal.row()

        return self._encode_any(audio, sampling_rate, downmix, encode)

    def resolve_codebooks(
        self: LatentTokenizer, n_codebooks: int | None, bitrate: float | int | None
    ) -> int:
        """The number of codebooks that ``n_codebooks`` or ``bitrate`` (not both) asks for."""
        if n_codebooks is not None and bitrate is not None:
            raise ValueError(f"Give n_codebooks={n_codebooks} or bitrate={bitrate:g}, not both.")
        if bitrate is not None:
            return self.codebooks_for(bitrate)
        return self._check_n_codebooks(n_codebooks)

    def _encode_any(
        self: LatentTokenizer, audio: Any, sampling_rate: int | None, downmix: bool, encode: Any
    ) -> Row:
        options = {"target_rate": self.sampling_rate, "downmix": downmix}
        if is_batch(audio):
            sources = open_batch(audio, sampling_rate=sampling_rate, **options)
            return _stack([encode(source) for source in sources])
        return encode(open_audio(audio, sampling_rate=sampling_rate, **options))

    def decode_codes(
        self: LatentTokenizer,
        row: Mapping[str, Any] | list[Any] | np.ndarray | Tensor,
        *,
        decoder: DecoderName | None = None,
    ) -> Any:
        """Decodes codes into audio.

        Args:
            row: What `encode_codes` returned, or bare codes ``[T, n]`` of one channel; the first n
                codebooks of K will do. A batch (a list in every column, or a list of rows) gives a
                list.
            decoder: Default: the finetuned one, if the checkpoint has it, else the continuous one.

        Returns:
            Float32 ``[C, N]``, exactly as long as the input was; bare codes give all samples that
            the frames cover, at the checkpoint's default level.
        """
        name = self.codes_decoder if decoder is None else decoder

        def decode(one: Row) -> np.ndarray:
            codes = torch.as_tensor(np.asarray(one["codes"])).long()
            if codes.ndim != 2:
                raise ValueError(f"codes have shape {tuple(codes.shape)}; expected [T, n].")
            grouped = self._grouped(codes, one)
            latents = self.dequantize(grouped.transpose(1, 2))
            return self._decode_row(latents, one, name, codes.shape[1])

        return _decode_any(row, "codes", decode)

    def decode_latents(
        self: LatentTokenizer,
        row: Mapping[str, Any] | list[Any] | np.ndarray | Tensor,
        *,
        decoder: DecoderName = "continuous",
    ) -> Any:
        """Decodes latents: a row of `encode_latents`, or bare ``[T, D]``; see `decode_codes`."""

        def decode(one: Row) -> np.ndarray:
            latents = torch.as_tensor(np.asarray(one["latents"], dtype=np.float32))
            if latents.ndim != 2:
                raise ValueError(f"latents have shape {tuple(latents.shape)}; expected [T, D].")
            return self._decode_row(self._grouped(latents, one).transpose(1, 2), one, decoder, None)

        return _decode_any(row, "latents", decode)

    def latents_to_codes(
        self: LatentTokenizer, row: Mapping[str, Any], *, n_codebooks: int | None = None
    ) -> Row:
        """Quantizes a row of latents into the row that `encode_codes` gives."""
        latents = torch.as_tensor(np.asarray(row["latents"], dtype=np.float32))
        grouped = self._grouped(latents, dict(row)).transpose(1, 2)
        codes = self.quantize(grouped, n_codebooks).transpose(1, 2).flatten(0, 1).cpu().numpy()
        kept = {name: row[name] for name in ("num_samples", "num_channels", "gain") if name in row}
        return {"codes": codes.astype(_code_dtype(self.codebook_sizes))} | kept

    def _grouped(self: LatentTokenizer, frames: Tensor, row: Row) -> Tensor:
        groups = -(-int(row.get("num_channels", 1)) // self.autoencoder.num_channels)
        if len(frames) == 0 or len(frames) % groups:
            raise ValueError(
                f"{len(frames)} frames cannot be shared among {groups} channel groups; "
                "is num_channels the row's own?"
            )
        return frames.reshape(groups, -1, frames.shape[-1])

    def _decode_row(
        self: LatentTokenizer, latents: Tensor, row: Row, decoder: DecoderName, n: int | None
    ) -> np.ndarray:
        joint = self.autoencoder.num_channels
        covered = self.autoencoder.num_samples(latents.shape[-1])
        num_samples = int(row.get("num_samples", covered))
        if not 0 <= num_samples <= covered:
            raise ValueError(
                f"num_samples={num_samples}, but {latents.shape[-1]} frames cover {covered}."
            )
        num_channels = int(row.get("num_channels", joint))
        ones = latents.new_ones(len(latents))
        audio = self.decode(latents, decoder=decoder, n_codebooks=n, gain=ones)
        wave = audio.flatten(0, 1)[:num_channels, :num_samples].cpu().numpy()
        gain = np.asarray(row.get("gain", self.default_gain), dtype=np.float32)
        return wave * gain.reshape(-1, 1)


def _decode_any(row: Any, column: str, decode: Any) -> Any:
    if isinstance(row, (np.ndarray, Tensor)):
        return decode({column: row.cpu() if isinstance(row, Tensor) else row})
    if isinstance(row, Mapping):
        if column not in row:
            raise ValueError(f"The row has no {column!r}, only {sorted(row)}.")
        values = row[column]
        shared = [k for k in (column, "num_samples", "num_channels", "gain") if k in row]
        # A batch as `datasets` makes it: one list a column, whose first entry has two axes itself.
        batched = (
            np.ndim(row["num_samples"]) == 1
            if "num_samples" in row
            else (isinstance(values, list) and len(values) > 0 and np.ndim(values[0]) == 2)
        )
        if not batched:
            return decode({k: row[k] for k in shared})
        return [decode({k: row[k][i] for k in shared}) for i in range(len(values))]
    if isinstance(row, list):
        return [_decode_any(one, column, decode) for one in row]
    raise ValueError(f"Cannot decode a {type(row).__name__}: expected a row, an array or a batch.")
