"""What the linear paths of the bundled family begin as: principal components of audio's MDCT.

Of stereo, M counts the coefficients of mid and of side, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Of natural logarithms, in `log_magnitudes`.
_SCALE, _OFFSET = 3.0, 1.5


def log_magnitudes(c: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T M"]:
    """Logarithms of the magnitudes behind MDCT coefficients, scaled to about -2 to 2.

    One coefficient fluctuates with phase; with its neighbours' difference, which stands in for the
    missing sine part, it gives a steady magnitude (the pseudo-spectrum of Daudet and Sandler,
    2004).
    """
    sine = torch.nn.functional.pad(c, (1, 1))
    sine = sine[..., 2:] - sine[..., :-2]
    magnitude = (c.square() + sine.square()).clamp(min=1e-10).sqrt()
    return torch.log(magnitude + 1e-5) / _SCALE + _OFFSET


@dataclass(frozen=True)
class LevelStatistics:
    """Mean and covariance of `log_magnitudes` of audio of root mean square 1."""

    mean: Float[Tensor, " M"]
    covariance: Float[Tensor, "M M"]


@dataclass(frozen=True)
class WaveformPaths:
    """Coefficients to latents and back, and the share of each bin's energy that does not return."""

    analysis: Float[Tensor, "D M"]
    synthesis: Float[Tensor, "M D"]
    lost: Float[Tensor, " M"]


def waveform_paths(
    covariance: Float[Tensor, "M M"], count: int, emphasis: float = 0.0, num_channels: int = 1
) -> WaveformPaths:
    """The first components of MDCT coefficients, after pre-emphasis (see `training.losses`).

    Their standard deviations are shared half and half between analysis and synthesis, so that the
    latents that matter more have more variance, and all together have standard deviation 1.
    """
    num_bins = len(covariance) // num_channels
    bins = torch.arange(num_bins, dtype=torch.float64, device=covariance.device)
    angle = (bins + 0.5) / num_bins * torch.pi
    weight = (1 - 2 * emphasis * angle.cos() + emphasis**2).sqrt().repeat(num_channels)
    energy = weight[:, None] * covariance.double() * weight
    basis, root, scale = _components(energy, count)
    kept = ((energy @ basis.T) * basis.T).sum(1) / energy.diagonal().clamp(min=1e-12)
    return WaveformPaths(
        basis * weight / root[:, None] / scale,
        basis.T / weight[:, None] * root * scale,
        (1 - kept).clamp(1e-6, 1),
    )


def envelope_analysis(
    levels: LevelStatistics, weight: Float[Tensor, " M"], count: int, num_channels: int = 1
) -> Float[Tensor, "E M"]:
    """Log magnitudes less their mean to latents: the first components.

    Octaves count alike; ``weight`` says how much a bin counts beside that.
    """
    bins = torch.arange(1, len(weight) // num_channels + 1, device=weight.device)
    weight = weight.double() * bins.rsqrt().repeat(num_channels)
    covariance = levels.covariance.double()
    basis, root, scale = _components(weight[:, None] * covariance * weight, count)
    return basis * weight / root[:, None] / scale


def expected_levels(
    levels: LevelStatistics, analysis: Float[Tensor, "E M"]
) -> Float[Tensor, "M E"]:
    """Latents of `envelope_analysis` to the most likely natural logarithms less their mean."""
    shared = levels.covariance.double() @ analysis.double().T
    return shared @ torch.linalg.inv(analysis.double() @ shared) * _SCALE


def mean_levels(levels: LevelStatistics) -> Float[Tensor, " M"]:
    """Natural logarithms of magnitudes where all latents of `envelope_analysis` are zero."""
    return (levels.mean.double() - _OFFSET) * _SCALE


def _components(
    covariance: Float[Tensor, "M M"], count: int
) -> tuple[Float[Tensor, "count M"], Float[Tensor, " count"], Float[Tensor, ""]]:
    """Principal components, the roots of their deviations, and the scale that makes them one."""
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(-1)[:, :count].T
    deviation = values.flip(-1)[:count].clamp(min=1e-12).sqrt()
    return basis, deviation.sqrt(), deviation.mean().sqrt()
