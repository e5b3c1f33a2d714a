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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
# Latent frames that are run at once, beside their context.
TILE_FRAMES = 1024


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
        """Encodes audio into continuous latents.

        Args:
            audio: Floats ``[N]`` or ``[C, N]``.
            sampling_rate: Hz; checked if given, as nothing is resampled here.
            gain: What the audio is divided by, for all channels or each. Default: their root mean
                square.

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
        """Encodes audio into codes; arguments and errors as in `encode_latents`.

        Args:
            audio: See there.
            sampling_rate: See there.
            n_codebooks: The first so many codes of each frame. (A beam has searched for the best of
                all, so export it with fewer codebooks for the best of fewer.)
            gain: See there.

        Returns:
            A row with ``codes``, int16 or int32 ``[groups * T, n]``.
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

        Args:
            row: Of `encode_codes`, or of `tokenizer.LatentTokenizer`.
            decoder: "finetuned" or "continuous". Default: the finetuned one, if there is one.
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
            measured = np.sqrt(np.square(x, dtype=np.float64).mean(1))
            return (measured + self._config["gain_floor"]).astype(np.float32)
        given = np.broadcast_to(np.asarray(gain, dtype=np.float32).reshape(-1), (len(x),)).copy()
        if not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"gain={gain} must be positive and finite.")
        return given

    def _encode_group(self, audio: np.ndarray) -> np.ndarray:
        """Latents ``[T, D]`` of ``[1, M, N]``, in overlapping tiles that the network cannot see."""
        context, hop = self._config["encoder_context"], self.hop_length
        if context is None:
            return self._run("encoder", audio=audio)[0]
        found, first = [], 0
        while audio.shape[-1] > (first + TILE_FRAMES + context) * hop:
            skip = min(first, context)
            stop = (first + TILE_FRAMES + context) * hop
            z = self._run("encoder", audio=audio[..., (first - skip) * hop : stop])[0]
            found.append(z[skip : skip + TILE_FRAMES])
            first += TILE_FRAMES
        skip = min(first, context)
        found.append(self._run("encoder", audio=audio[..., (first - skip) * hop :])[0][skip:])
        return np.concatenate(found)

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
        context, hop, total = self._config["decoder_context"], self.hop_length, latents.shape[1]
        noise = np.array([level], dtype=np.float32)
        name = f"decoder-{decoder}"
        if context is None:
            return self._run(name, latents=latents, noise_level=noise)[0]
        found, first = [], 0
        while total > first + TILE_FRAMES + context:
            start = max(0, first - context)
            z = latents[:, start : first + TILE_FRAMES + context]
            audio = self._run(name, latents=z, noise_level=noise)[0]
            found.append(audio[:, (first - start) * hop : (first - start + TILE_FRAMES) * hop])
            first += TILE_FRAMES
        start = max(0, first - context)
        audio = self._run(name, latents=latents[:, start:], noise_level=noise)[0]
        found.append(audio[:, (first - start) * hop :])
        return np.concatenate(found, axis=1)

    def _run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        # A session when it is first used: who only encodes loads no decoder.
        if name not in self._sessions:
            self._sessions[name] = self._new_session(self._folder / f"{name}.onnx")
        arrays = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        return self._sessions[name].run(None, arrays)[0]
