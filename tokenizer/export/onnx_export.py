"""A tokenizer as ONNX graphs, for `tokenizer.export.onnx_runner` and whatever else runs ONNX.

The folder that `export_onnx` writes:

* ``encoder.onnx``: audio ``[1, M, N]`` over its gain to latents ``[1, T, D]``;
* ``quantizer.onnx``: latents ``[M, D]`` to codes ``[M, K]``;
* ``dequantizer.onnx``: codes ``[M, n]``, n <= K, to latents ``[M, D]``;
* ``decoder-continuous.onnx``: latents ``[1, T, D]`` and noise_level ``[1]`` to audio ``[1, M, N]``;
  one that adds noise also takes ``first_frame`` ``[1]``, the place of the latents in the signal;
* ``decoder-finetuned.onnx``: the same, where there is one;
* ``onnx.json``: rates, sizes, noise levels;
* ``latok_onnx.py``: the runner.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.errors import InputError, import_extra
from tokenizer.export import onnx_runner
from tokenizer.model.gains import GAIN_FLOOR
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.search import Stage
from tokenizer.saving import writing_files

OPSET = 20


class _Encoder(nn.ModuleList):
    def forward(self, audio: Tensor) -> Tensor:
        return self[0](audio).transpose(1, 2)


class _Decoder(nn.ModuleList):
    def forward(self, latents: Tensor, noise_level: Tensor) -> Tensor:
        return self[0](latents.transpose(1, 2), noise_level)


class _NoisyDecoder(nn.ModuleList):
    def forward(self, latents: Tensor, noise_level: Tensor, first_frame: Tensor) -> Tensor:
        return self[0](latents.transpose(1, 2), noise_level, first_frame)


class _Search(nn.Module):
    """`tokenizer.quantizers.search` for a graph: all vectors at once, plain top-k."""

    def __init__(self, quantizer: ResidualVectorQuantizer, n: int, width: int) -> None:
        super().__init__()
        self.width, self.dim = width, quantizer.dim
        self.shift, self.common, self.stages = quantizer.search_space(n)

    def forward(self, latents: Tensor) -> Tensor:
        # Detail has no codes.
        residual = latents[:, : self.dim] - self.shift
        if self.common is not None:
            residual = self.common.project(residual)
        return self._greedy(residual) if self.width == 1 else self._beam(residual)

    def _scores(self, stage: Stage, u: Tensor) -> Tensor:
        size = len(stage.centroids)
        return u @ stage.keys[:size].T + stage.bias[:size]

    def _greedy(self, residual: Tensor) -> Tensor:
        codes = []
        for stage in self.stages:
            codes.append(self._scores(stage, stage.measured(residual)).argmax(1))
            residual = residual - stage.centroids[codes[-1]]
        return torch.stack(codes, 1)

    def _beam(self, x: Tensor) -> Tensor:
        residual, hypotheses = x[:, None], 1  # [M, H, D]
        codes: list[Tensor] = []  # of each stage, [M, H]
        for stage in self.stages:
            size, dim = stage.centroids.shape
            u = stage.measured(residual.reshape(-1, dim))
            scores = self._scores(stage, u) - u.square().sum(1, keepdim=True) / 2
            hypotheses_next = min(self.width, hypotheses * size)
            best = scores.reshape(-1, hypotheses * size).topk(hypotheses_next).indices
            parent, entry = best // size, best % size
            index = parent[..., None]
            residual = residual.gather(1, index.expand(-1, -1, dim)) - stage.centroids[entry]
            codes = [*(earlier.gather(1, parent) for earlier in codes), entry]
            hypotheses = hypotheses_next
        return torch.stack([stage[:, 0] for stage in codes], 1)


class _Sum(nn.Module):
    def __init__(self, quantizer: ResidualVectorQuantizer, latent_dim: int) -> None:
        super().__init__()
        self.size, self.missing = quantizer.codebook_size, latent_dim - quantizer.dim
        self.table = quantizer.codebooks.float().flatten(0, 1)

    def forward(self, codes: Tensor) -> Tensor:
        first = torch.arange(codes.shape[1], device=codes.device) * self.size
        return functional.pad(self.table[codes + first].sum(1), (0, self.missing))


def export_onnx(
    tokenizer: LatentTokenizer,
    out: str | Path,
    *,
    n_codebooks: int | None = None,
    beam_width: int | None = None,
) -> Path:
    """Writes a tokenizer as ONNX graphs to a folder, which is returned.

    Args:
        tokenizer: With or without a quantizer, which must be a residual one.
        out: The folder, made if it is not there.
        n_codebooks: Codebooks of the exported search. Default: all.
        beam_width: Hypotheses of the exported search. Default: the quantizer's own.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If the quantizer is of another kind, the tokenizer not on the CPU, or torch
            cannot export a network of it.
    """
    onnx = import_extra("onnx", "Exporting to ONNX", "onnx")
    import_extra("onnxscript", "Exporting to ONNX", "onnx")
    if tokenizer.device.type != "cpu":
        raise InputError(f"The tokenizer is on {tokenizer.device}: move it to the CPU first.")
    quantizer = tokenizer.quantizer
    if quantizer is not None and not isinstance(quantizer, ResidualVectorQuantizer):
        raise InputError(
            f"The quantizer is {quantizer.kind!r}; only residual ones ('rvq') can be exported."
        )
    n = 0 if quantizer is None else tokenizer.resolve_codebooks(n_codebooks, None)
    autoencoder, dim = tokenizer.autoencoder, tokenizer.latent_dim
    frames = autoencoder.num_frames(50 * autoencoder.hop_length)
    decoders = {"continuous": autoencoder.decoder}
    if tokenizer.finetuned_decoder is not None:
        decoders["finetuned"] = tokenizer.finetuned_decoder
    level = torch.zeros(1)
    latents = torch.zeros(1, frames, dim)
    audio = torch.zeros(1, autoencoder.num_channels, 50 * autoencoder.hop_length + 1)
    graphs: dict[str, tuple[nn.Module, dict[str, Tensor], dict[str, tuple[int, ...]], str]] = {
        "encoder": (_Encoder([autoencoder.encoder]), {"audio": audio}, {"audio": (2,)}, "latents")
    }
    for name, decoder in decoders.items():
        inputs, kind = {"latents": latents, "noise_level": level}, _Decoder
        if decoder.adds_noise:
            inputs["first_frame"], kind = torch.zeros(1, dtype=torch.int64), _NoisyDecoder
        graphs[f"decoder-{name}"] = (kind([decoder]), inputs, {"latents": (1,)}, "audio")
    if quantizer is not None:
        width = quantizer.beam_width if beam_width is None else beam_width
        search, total = _Search(quantizer, n, width), _Sum(quantizer, dim)
        codes = torch.zeros(frames, n, dtype=torch.int64)
        graphs["quantizer"] = (search, {"latents": latents[0]}, {"latents": (0,)}, "codes")
        graphs["dequantizer"] = (total, {"codes": codes}, {"codes": (0, 1)}, "latents")
    with writing_files(out) as folder:
        for name, (module, inputs, moving, result) in graphs.items():
            try:
                model = _graph(module.eval(), inputs, moving, result)
            except torch.onnx.OnnxExporterError as error:
                part = name.partition("-")[0]
                raise InputError(
                    f"torch cannot export the {part} of a {autoencoder.kind!r} autoencoder to ONNX "
                    "for audio of any length; `latok encode` and `decode` run it with torch."
                ) from error
            onnx.checker.check_model(model)
            onnx.save(model, str(folder / f"{name}.onnx"))
        shutil.copyfile(onnx_runner.__file__, folder / "latok_onnx.py")
        description = _description(tokenizer, n, list(decoders))
        (folder / "onnx.json").write_text(json.dumps(description, indent=1))
    return Path(out)


def _description(tokenizer: LatentTokenizer, n: int, decoders: list[str]) -> dict[str, Any]:
    autoencoder, quantizer = tokenizer.autoencoder, tokenizer.quantizer
    return {
        "format": onnx_runner.FORMAT,
        "fingerprint": tokenizer.fingerprint,
        "sampling_rate": tokenizer.sampling_rate,
        "hop_length": tokenizer.hop_length,
        "latent_dim": tokenizer.latent_dim,
        "num_channels": autoencoder.num_channels,
        "normalize": autoencoder.normalize,
        "peak": autoencoder.peak,
        "gain_floor": GAIN_FLOOR,
        "default_gain": tokenizer.default_gain,
        "encoder_context": autoencoder.encoder.context,
        "decoder_context": autoencoder.decoder.context,
        "decoders": decoders,
        "adds_noise": autoencoder.decoder.adds_noise,
        "codes_decoder": tokenizer.codes_decoder,
        "codebook_sizes": [] if quantizer is None else list(quantizer.codebook_sizes[:n]),
        "noise_levels": [] if quantizer is None else quantizer.noise_levels[:n].tolist(),
    }


@torch.no_grad()
def _graph(
    module: nn.Module, inputs: dict[str, Tensor], moving: dict[str, tuple[int, ...]], result: str
) -> Any:
    """A module as an ONNX model whose inputs have axes of any length."""
    module(**inputs)  # Fills caches of constants with tensors, not with the tracer's.
    axes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in moving.get(name, ())} for name in inputs
    }
    with _quiet():
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[result],
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns of its own insides, and logs each operator that it looks for.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
