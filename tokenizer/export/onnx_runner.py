"""A tokenizer that ``latok export-onnx`` wrote, run by onnxruntime, without torch.

This file needs NumPy and onnxruntime only, and lies beside the models as ``latok_onnx.py``:

    from latok_onnx import OnnxTokenizer        # or tokenizer.onnx_runner

    tok = OnnxTokenizer("exported")
    row = tok.encode_codes(audio)               # float32 [C, N] at tok.sampling_rate
    audio = tok.decode_codes(row)

Rows are those of `tokenizer.LatentTokenizer` ("codes" [T, K], "latents" [T, D], "gain",
"num_samples", "num_channels"), so what one writes the other reads. Codes agree with torch's except
where an entry of a codebook is as near as another to within float32 rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1
# Latent frames that are run at once, beside their context.
TILE_FRAMES = 1024


class _Tile(NamedTuple):
    """Frames ``start`` to ``stop`` go in; of the result, ``first`` to ``last`` count."""

    start: int
    stop: int
    first: int
    last: int


def _tiles(total: int, context: int | None) -> Iterator[_Tile]:
    """Tiles with so many frames of context on either side; without context, one tile."""
    begin = 0
    while context is not None and total > begin + TILE_FRAMES + context:
        start = max(0, begin - context)
        first = begin - start
        yield _Tile(start, begin + TILE_FRAMES + context, first, first + TILE_FRAMES)
        begin += TILE_FRAMES
    start = max(0, begin - (context or 0))
    # An encoder may return a frame more than go in.
    yield _Tile(start, total, begin - start, total + 1)


class OnnxTokenizer:
    """An exported tokenizer.

    Args:
        folder: What ``latok export-onnx`` wrote.
        providers: Of onnxruntime. Default: the CPU.
        num_threads: Threads of one call. Default: onnxruntime's choice.

    Attributes:
        sampling_rate: Hz of the audio that goes in and comes out.
        hop_length: Samples per latent frame.
        num_codebooks: K of the exported search.

    Raises:
        FileNotFoundError: If there is no exported tokenizer.
        ValueError: If a newer library exported it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        num_threads: int | None = None,
    ) -> None:
        import onnxruntime

        self._folder = Path(folder)
        config = self._folder / "onnx.json"
        if not config.is_file():
            raise FileNotFoundError(f"{folder} has no onnx.json: make it with `latok export-onnx`.")
        self._config: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        if self._config["format"] > FORMAT:
            raise ValueError(f"{folder} is of format {self._config['format']}: update this file.")
        options = onnxruntime.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._new_session = lambda path: onnxruntime.InferenceSession(
            str(path), options, providers=list(providers)
        )
        self._sessions: dict[str, Any] = {}
        self.sampling_rate: int = self._config["sampling_rate"]
        self.hop_length: int = self._config["hop_length"]
        self.num_codebooks: int = len(self._config["codebook_sizes"])

    def encode_latents(
        self, audio: np.ndarray, *, sampling_rate: int | None = None, gain: Any = None
    ) -> dict[str, Any]:
        """Encodes audio, floats ``[N]`` or ``[C, N]``, into continuous latents.

        Args:
            audio: At `sampling_rate`; nothing is resampled here.
            sampling_rate: Hz; checked if given.
            gain: What the audio is divided by, for all channels or each. Default: the level that
                the model wants, of channels that are coded together.

        Returns:
            A row: ``latents`` float32 ``[groups * T, D]``, ``gain``, ``num_samples``,
            ``num_channels``.

        Raises:
            ValueError: If the audio is of another rate or shape, empty or not finite.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"Audio of {sampling_rate} Hz: resample it to {self.sampling_rate}.")
        x = np.asarray(audio)
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.size == 0 or x.dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(
                f"Audio is {x.dtype} of shape {list(x.shape)}; expected finite floats [C, N]."
            )
        x = x.astype(np.float32)
        gains = self._gain(x, gain)
        joint = self._config["num_channels"]
        scaled = x / gains[:, None]
        missing = -len(scaled) % joint
        scaled = np.concatenate([scaled, np.repeat(scaled[-1:], missing, 0)])
        groups = scaled.reshape(-1, joint, scaled.shape[1])
        latents = [self._encode_group(group[None]) for group in groups]
        return {
            "latents": np.concatenate(latents),
            "num_samples": x.shape[1],
            "num_channels": len(x),
            "gain": gains,
        }

    def encode_codes(
        self,
        audio: np.ndarray,
        *,
        sampling_rate: int | None = None,
        n_codebooks: int | None = None,
        gain: Any = None,
    ) -> dict[str, Any]:
        """Encodes audio into a row with ``codes``, int16 or int32 ``[groups * T, n]``.

        Arguments and errors are as in `encode_latents`; ``n_codebooks`` takes the first so many
        codes of each frame. (A beam has searched for the best of all, so export it with fewer
        codebooks for the best of fewer.)
        """
        row = self.encode_latents(audio, sampling_rate=sampling_rate, gain=gain)
        codes = self.quantize(row.pop("latents"), n_codebooks)
        dtype = np.int16 if max(self._config["codebook_sizes"]) <= 2**15 else np.int32
        return {"codes": codes.astype(dtype)} | row

    def quantize(self, latents: np.ndarray, n_codebooks: int | None = None) -> np.ndarray:
        """Codes int64 ``[M, n]`` of latents ``[M, D]``."""
        n = self.num_codebooks if n_codebooks is None else n_codebooks
        if not 1 <= n <= self.num_codebooks:
            raise ValueError(f"n_codebooks={n} is not in 1..{self.num_codebooks}.")
        pieces = np.split(latents, range(TILE_FRAMES, len(latents), TILE_FRAMES))
        return np.concatenate([self._run("quantizer", latents=piece) for piece in pieces])[:, :n]

    def decode_codes(self, row: Mapping[str, Any], *, decoder: str | None = None) -> np.ndarray:
        """Decodes a row of codes into audio, float32 ``[C, N]``.

        The decoder is "finetuned" or "continuous". Default: the finetuned one, if there is one.
        """
        codes = np.asarray(row["codes"], dtype=np.int64)
        sizes = np.asarray(self._config["codebook_sizes"][: codes.shape[1]])
        if codes.shape[1] != len(sizes) or (codes < 0).any() or (codes >= sizes).any():
            raise ValueError(f"Codes of shape {list(codes.shape)} are not of these codebooks.")
        latents = self._run("dequantizer", codes=codes)
        name = self._config["codes_decoder"] if decoder is None else decoder
        level = self._config["noise_levels"][codes.shape[1] - 1]
        return self._decode(latents, row, name, level)

    def decode_latents(self, row: Mapping[str, Any], *, decoder: str = "continuous") -> np.ndarray:
        """Decodes a row of latents into audio; see `decode_codes`."""
        latents = np.asarray(row["latents"], dtype=np.float32)
        return self._decode(latents, row, decoder, 0.0)

    def _gain(self, x: np.ndarray, gain: Any) -> np.ndarray:
        if not self._config["normalize"]:
            return np.ones(len(x), dtype=np.float32)
        if gain is None:
            # Channels that are coded together have one level.
            joint, peak = self._config["num_channels"], self._config.get("peak")
            groups = [x[i : i + joint].astype(np.float64) for i in range(0, len(x), joint)]
            if peak is None:
                levels = [np.sqrt(np.square(group).mean()) for group in groups]
            else:
                levels = [np.abs(group).max() / peak for group in groups]
            measured = np.repeat(levels, joint)[: len(x)]
            return (measured + self._config["gain_floor"]).astype(np.float32)
        given = np.broadcast_to(np.asarray(gain, dtype=np.float32).reshape(-1), (len(x),)).copy()
        if not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"gain={gain} must be positive and finite.")
        return given

    def _encode_group(self, audio: np.ndarray) -> np.ndarray:
        """Latents ``[T, D]`` of ``[1, M, N]``, in overlapping tiles that the network cannot see."""
        hop = self.hop_length
        results = []
        for tile in _tiles(-(-audio.shape[-1] // hop), self._config["encoder_context"]):
            z = self._run("encoder", audio=audio[..., tile.start * hop : tile.stop * hop])[0]
            results.append(z[tile.first : tile.last])
        return np.concatenate(results)

    def _decode(
        self, latents: np.ndarray, row: Mapping[str, Any], decoder: str, level: float
    ) -> np.ndarray:
        if decoder not in self._config["decoders"]:
            raise ValueError(f"decoder={decoder!r}; exported are {self._config['decoders']}.")
        channels = int(row.get("num_channels", self._config["num_channels"]))
        groups = -(-channels // self._config["num_channels"])
        if len(latents) == 0 or len(latents) % groups:
            raise ValueError(f"{len(latents)} frames cannot be shared among {groups} groups.")
        shared = latents.reshape(groups, -1, latents.shape[-1])
        wave = np.concatenate([self._decode_group(z[None], decoder, level) for z in shared])
        gain = row.get("gain", self._config["default_gain"])
        wave = wave[:channels, : int(row.get("num_samples", wave.shape[1]))]
        return wave * np.asarray(gain, dtype=np.float32).reshape(-1, 1)

    def _decode_group(self, latents: np.ndarray, decoder: str, level: float) -> np.ndarray:
        """Audio ``[M, N]`` of ``[1, T, D]``, in tiles."""
        hop, results = self.hop_length, []
        inputs: dict[str, np.ndarray] = {"noise_level": np.array([level], dtype=np.float32)}
        for tile in _tiles(latents.shape[1], self._config["decoder_context"]):
            z = latents[:, tile.start : tile.stop]
            if self._config.get("adds_noise"):
                inputs["first_frame"] = np.array([tile.start], dtype=np.int64)
            audio = self._run(f"decoder-{decoder}", latents=z, **inputs)[0]
            results.append(audio[:, tile.first * hop : tile.last * hop])
        return np.concatenate(results, axis=1)

    def _run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        # A session when it is first used: who only encodes loads no decoder.
        if name not in self._sessions:
            self._sessions[name] = self._new_session(self._folder / f"{name}.onnx")
        arrays = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        return self._sessions[name].run(None, arrays)[0]
