"""What a fitted quantizer makes of latents: errors after each codebook, and the use of codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

# Where every number of codebooks is searched for anew, fewer latents have to do.
_FRAMES_PER_SEARCH = 4_096
_BATCH = 8_192


@dataclass(frozen=True)
class FitReport:
    """What `Quantizer.fit` measured on latents.

    Attributes:
        frames: Latent frames seen.
        utilization: Share of each codebook's entries that were used at all.
        perplexity: Two to the entropy (in bits) of each codebook's codes.
        noise_levels: RMS error after the first n codebooks over the latents' RMS deviation from
            their mean.
        distortion_db: The same in dB: ``20 log10(noise_level)``; None for an error of zero.
    """

    frames: int
    utilization: tuple[float, ...]
    perplexity: tuple[float, ...]
    noise_levels: tuple[float, ...]
    distortion_db: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def table(self) -> str:
        """A Markdown table, one row per codebook."""
        lines = [
            f"Measured on {self.frames} latent frames:",
            "",
            "| codebooks | distortion dB | noise level | utilization | perplexity |",
            "|---|---|---|---|---|",
        ]
        columns = (self.distortion_db, self.noise_levels, self.utilization, self.perplexity)
        for n, (db, noise, used, perplexity) in enumerate(zip(*columns, strict=True), 1):
            shown = "-inf" if db is None else f"{db:.2f}"
            lines.append(f"| {n} | {shown} | {noise:.4f} | {used:.1%} | {perplexity:.1f} |")
        return "\n".join(lines)


def code_entropy(counts: Float[Tensor, "K S"] | Int[Tensor, "K S"]) -> Float[Tensor, " K"]:
    """Entropy in bits of each codebook's codes, from how often each entry occurred; 0 if never."""
    share = counts / counts.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(share).sum(1) / math.log(2)


def report(
    code_counts: Int[Tensor, "K S"],
    noise_levels: Float[Tensor, " K"],
    codebook_sizes: tuple[int, ...],
) -> FitReport:
    """The report that a quantizer's buffers hold."""
    counts = code_counts.double()
    sizes = torch.tensor(codebook_sizes, dtype=torch.float64, device=counts.device)
    noise = noise_levels.double().tolist()
    return FitReport(
        frames=int(code_counts[0].sum()),
        utilization=tuple(((counts > 0).sum(1) / sizes).tolist()),
        perplexity=tuple(code_entropy(counts).exp2().tolist()),
        noise_levels=tuple(noise),
        distortion_db=tuple(20 * math.log10(v) if v > 0 else None for v in noise),
    )


@torch.no_grad()
def measure(
    encode: Callable[..., Tensor],
    decode: Callable[[Tensor], Tensor],
    frames: Float[Tensor, "M D"],
    codebook_sizes: tuple[int, ...],
    *,
    prefix_codes: bool,
    progress: bool = False,
) -> tuple[Int[Tensor, "K S"], Float[Tensor, " K"]]:
    """Code counts and noise levels of latents, as `Quantizer` keeps them.

    Without `prefix_codes` each number of codebooks is searched for anew, on fewer latents.
    """
    count = len(codebook_sizes)
    counts = torch.zeros(count, max(codebook_sizes), dtype=torch.int64, device=frames.device)
    errors = torch.zeros(count, dtype=torch.float64)
    with tqdm(total=len(frames), desc="measure", unit="frame", disable=not progress) as bar:
        for batch in frames.split(_BATCH):
            codes = encode(batch)
            for k in range(count):
                counts[k] += torch.bincount(codes[:, k], minlength=counts.shape[1])
                if prefix_codes:
                    errors[k] += _squared_error(batch, decode(codes[:, : k + 1]))
            bar.update(len(batch))
    if not prefix_codes:
        searched = min(len(frames), _FRAMES_PER_SEARCH)
        # Spread over all: neighbours are alike.
        subset = frames[torch.arange(searched, device=frames.device) * len(frames) // searched]
        for n in range(1, count + 1):
            errors[n - 1] = _squared_error(subset, decode(encode(subset, n)))
        errors *= len(frames) / searched
    mean = frames.mean(0, dtype=torch.float64)
    variance = _squared_error(frames, mean.float()) / len(frames)
    return counts, relative_errors(errors / len(frames), variance, mean)


def relative_errors(
    errors: Float[Tensor, " K"], variance: float, mean: Float[Tensor, " D"]
) -> Float[Tensor, " K"]:
    """Noise levels: roots of mean squared errors over the latents' variance around their mean."""
    # Latents that are all alike, to within rounding, have no deviation to compare errors with.
    rounding = len(mean) * float(mean.abs().max() * torch.finfo(torch.float32).eps) ** 2
    noise = (errors / variance).sqrt() if variance > rounding else torch.zeros_like(errors)
    return noise.float()


def _squared_error(x: Tensor, estimate: Tensor) -> float:
    return float((x - estimate).square().sum(dtype=torch.float64))
