"""Stage 2: freeze the autoencoder, cache its latents, fit a quantizer to them offline."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.quantizers.base import FitContext, Quantizer
from tokenizer.quantizers.sources import MemmapSource
from tokenizer.saving import write_text, writing
from tokenizer.training.clips import Clip, identity, joint_channels, read_window
from tokenizer.training.config import check_fields
from tokenizer.training.losses import MEL_BINS, MEL_WINDOWS, log_mel


@dataclass(frozen=True)
class FitConfig:
    """Which latents a quantizer is fitted to.

    Attributes:
        segment_seconds: Files are encoded in segments of this length, each normalised by itself.
        max_frames: At most this many latent frames are cached, from segments spread evenly over the
            clips.
        sensitivity_batches: Segments over which the decoder's sensitivity is averaged, for the
            "decoder" mode.
        seed: Seed of everything random.
    """

    segment_seconds: float = 10.0
    max_frames: int = 2_000_000
    sensitivity_batches: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, positive=("segment_seconds", "max_frames", "sensitivity_batches"))


def _segment_latents(
    tokenizer: LatentTokenizer, clips: list[Clip], config: FitConfig
) -> Iterator[Float[Tensor, "T D"]]:
    samples = round(config.segment_seconds * tokenizer.sampling_rate)
    per_segment = tokenizer.autoencoder.num_frames(samples)
    seconds = config.segment_seconds
    segments = [
        (clip, i * seconds, channel)
        for clip in clips
        for channel in range(clip.num_channels)
        for i in range(max(1, int(clip.num_samples / clip.sampling_rate // seconds)))
    ]
    count = min(max(1, config.max_frames // per_segment), len(segments))
    spread = [segments[int((i + 0.5) * len(segments) / count)] for i in range(count)]
    joint = tokenizer.autoencoder.num_channels
    for clip, start, channel in tqdm(spread, desc="encode", unit="segment"):
        # Stereo models hear the other channel too where there is one; a mono clip is its own other
        # channel.
        heard = joint_channels(clip, channel, joint)
        audio = read_window(clip, start, seconds, tokenizer.sampling_rate, heard)
        x = torch.from_numpy(np.ascontiguousarray(audio))[None]
        try:
            yield tokenizer.encode(x).latents[0].T
        except ValueError as error:
            raise InputError(f"{clip.name}, at {start:g} s: {error}") from None


def cache_latents(
    tokenizer: LatentTokenizer, clips: list[Clip], path: Path, config: FitConfig
) -> MemmapSource:
    """Encodes audio into one ``.npy`` of float32 ``[M, D]``, or reuses it if it fits.

    A ``.json`` beside it says what is in it. Latents are read from disk as they are needed.
    """
    weights = tokenizer.autoencoder.encoder.state_dict()
    checksum = float(sum(value.double().abs().sum() for value in weights.values()))
    described = {
        "encoder": tokenizer.autoencoder.to_config() | {"checksum": checksum},
        "clips": identity(clips, modified=True),
        "segment_seconds": config.segment_seconds,
        "max_frames": config.max_frames,
    }
    content, note = json.dumps(described), path.with_suffix(".json")
    if path.exists() and note.exists() and note.read_bytes() == content.encode():
        return MemmapSource(path)
    note.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not through a memory map: where the disk is full, writing to one kills the process.
    with writing(path) as partial, partial.open("wb") as stream:
        # NumPy leaves room in the header for a longer first axis, which is known at the end.
        header = {"descr": "<f4", "fortran_order": False, "shape": (0, tokenizer.latent_dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        rows = 0
        for z in _segment_latents(tokenizer, clips, config):
            stream.write(np.ascontiguousarray(z.cpu().numpy(), dtype=np.float32).tobytes())
            rows += len(z)
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, header | {"shape": (rows, header["shape"][1])})
    write_text(note, content)
    return MemmapSource(path)


def latent_statistics(source: MemmapSource) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of every latent channel, float32, computed in one pass."""
    total = torch.zeros(source.dim, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for batch in source.batches(2**16):
        total += batch.double().sum(0)
        squares += batch.double().square().sum(0)
    mean = total / len(source)
    std = (squares / len(source) - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float(), std.float()


def set_statistics(tokenizer: LatentTokenizer, source: MemmapSource) -> None:
    """Gives a tokenizer the `latent_statistics` of its own latents."""
    mean, std = latent_statistics(source)
    tokenizer.latents_mean.copy_(mean)
    tokenizer.latents_std.copy_(std)


def decoder_sensitivity(
    tokenizer: LatentTokenizer, source: MemmapSource, config: FitConfig
) -> Float[Tensor, "D D"]:
    """How much the listener hears of an error in the latents: ``G = E[J^T J]``.

    J is the Jacobian of what comes out (log-mel magnitudes at all scales, and the waveform over its
    root mean square) with respect to one latent frame. For random v of unit variance, ``E[(v J)^T
    (v J)] = J^T J``, and ``v J`` is one back-propagation through the continuous decoder.
    """
    generator = torch.Generator().manual_seed(config.seed)
    frames = min(128, len(source))
    last, count = len(source) - frames, config.sensitivity_batches
    starts = torch.randint(last + 1, (count,), generator=generator).sort().values
    metric = torch.zeros(source.dim, source.dim, dtype=torch.float64)
    decoder = tokenizer.autoencoder.decoder
    for start in starts.tolist():
        z = source.rows(start, start + frames).T[None].to(tokenizer.device).requires_grad_()
        audio = decoder(z)
        level = audio.detach().square().mean().sqrt() + 1e-5
        # Loudness at which a listener gets it: the mel features have an absolute floor.
        heard = audio / level * 0.1
        features = [heard / (0.1 * heard.numel() ** 0.5)]
        for window, bands in zip(MEL_WINDOWS, MEL_BINS, strict=True):
            values = log_mel(heard, tokenizer.sampling_rate, window, bands, 1e-5)
            features.append(values / values.numel() ** 0.5)
        total = sum(
            (f * torch.randn(f.shape, generator=generator).to(f.device)).sum() for f in features
        )
        assert isinstance(total, Tensor)
        (gradient,) = torch.autograd.grad(total, z)
        g = gradient[0].T.double().cpu()
        metric += g.T @ g
    return (metric / metric.diagonal().mean()).float()


def fit_quantizer(
    tokenizer: LatentTokenizer,
    clips: list[Clip],
    quantizer: Quantizer,
    *,
    cache: Path,
    config: FitConfig,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> LatentTokenizer:
    """Fits a quantizer to a tokenizer's latents and puts it in place, with the latents' statistics.

    Args:
        tokenizer: Changed in place, and returned.
        clips: Audio whose latents to fit.
        quantizer: A new quantizer of the right dimension.
        cache: ``.npy`` file to keep the latents in; reused if it fits.
        config: How much audio, and the seed.
        checkpoint: File from which quantizers trained by gradient descent resume.
        progress: Whether to show a bar.
    """
    source = cache_latents(tokenizer, clips, cache, config)
    set_statistics(tokenizer, source)
    dim = tokenizer.coded_dim
    context = FitContext(
        torch.Generator().manual_seed(config.seed),
        lambda: decoder_sensitivity(tokenizer, source, config)[:dim, :dim],
        checkpoint,
        progress,
    )
    quantizer.fit_with(MemmapSource(source.path, dim), context)
    if len(source) < 4 * (largest := max(quantizer.codebook_sizes)):
        warnings.warn(
            f"{len(source)} latents for codebooks of {largest} entries: they hardly generalize. "
            "Give more audio, or take a smaller codebook_size.",
            stacklevel=2,
        )
    return tokenizer.set_quantizer(quantizer)
