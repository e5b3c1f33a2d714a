"""Affine maps to the space in which a Euclidean quantizer should measure its error."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.errors import InputError, StateError
from tokenizer.precision import full_float32

Mode = Literal["none", "scalar", "channel", "whiten", "decoder"]
MODES: tuple[str, ...] = get_args(Mode)

# Eigenvalues and variances beneath this fraction of the largest are not believed: a direction in
# which nothing moved would otherwise be blown up without limit. With 1e-6 no direction is stretched
# more than a thousand times as much as another, which float32 inverts to about four digits.
RELATIVE_FLOOR = 1e-6


class Standardizer(nn.Module):
    """Maps vectors x to ``u = (x - mean) W`` and back; W is fitted.

    A quantizer minimises squared error in u, so W says which errors count:

    * "none": ``u = x``.
    * "scalar": one mean per channel, one standard deviation for all. Angles are kept.
    * "channel": mean 0 and standard deviation 1 in each channel. A channel whose variance is less
      than `RELATIVE_FLOOR` of the largest counts as constant, and gets the scale of the channel
      that varies most, the smallest there is.
    * "whiten": zero-phase (ZCA) whitening: the covariance of u is the identity. Eigenvalues of the
      covariance are raised to at least `RELATIVE_FLOOR` of the largest.
    * "decoder": ``W = G^(1/2)`` for a given metric G, so that squared distances in u are
      ``d G d^T`` for a difference d of latents: what the decoder makes of it. Eigenvalues of G are
      raised to at least `RELATIVE_FLOOR` of the largest, so that W has an inverse.

    Data without any variance, and a metric of zeros, leave the scale at 1. Everything is float32,
    also under autocast; decompositions are computed in float64.

    Attributes:
        mean: Buffer ``[D]``.
        scale: Buffer ``[D]``; the diagonal of W in the first three modes, ones in the others.
        matrix, inverse_matrix: Buffers ``[D, D]``, W and its inverse; in the last two modes only.

    Raises:
        ValueError: If the mode is unknown or ``dim < 1``.
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    fitted: Tensor

    def __init__(self, dim: int, mode: str = "channel") -> None:
        super().__init__()
        if mode not in MODES:
            raise InputError(f"Unknown standardization {mode!r}; known: {', '.join(MODES)}.")
        if dim < 1:
            raise InputError(f"dim is {dim}; it must be at least 1.")
        self.dim = dim
        self.mode = mode
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        if self.has_matrix:
            self.register_buffer("matrix", torch.eye(dim))
            self.register_buffer("inverse_matrix", torch.eye(dim))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def has_matrix(self) -> bool:
        """Whether W is a full matrix, not a diagonal."""
        return self.mode in ("whiten", "decoder")

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "M D"], metric: Tensor | None = None) -> Standardizer:
        """Measures mean and W of vectors, forgetting any earlier fit, and returns ``self``.

        The metric G ``[D, D]`` is symmetric and positive semidefinite; needed in mode "decoder",
        refused in all others.

        Raises:
            ValueError: If x or the metric is missing, of another shape or not as described.
        """
        self._check(x)
        if len(x) == 0 or not bool(x.isfinite().all()):
            raise InputError("A standardizer needs at least one vector, and all of them finite.")
        if (metric is not None) != (self.mode == "decoder"):
            state = "none was given" if metric is None else "one was given"
            raise InputError(
                f"Standardization 'decoder' needs a metric [D, D] (metric=...) and the others take "
                f"none; the mode is {self.mode!r} and {state}."
            )
        x = x.float()
        mean = x.mean(0, dtype=torch.float64)
        if self.mode == "none":
            mean = torch.zeros_like(mean)
        elif self.mode == "whiten":
            self._set_matrix(covariance(x, mean), power=-0.5, smallest=_resolution(mean))
        elif self.mode == "decoder":
            assert metric is not None
            self._set_matrix(self._checked_metric(metric), power=0.5, smallest=0.0)
        else:
            variance = (x - mean.float()).square().mean(0, dtype=torch.float64)
            if self.mode == "scalar":
                variance = variance.mean().expand(self.dim)
            self.scale.copy_(_inverse_deviation(variance, smallest=_resolution(mean)))
        self.mean.copy_(mean)
        self.fitted.fill_(True)
        return self

    def forward(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """``(x - mean) W``, float32."""
        self._check(x, needs_fit=True)
        if self.mode == "none":
            return x.float()
        return self.project(x.float() - self.mean.float())

    def inverse(self, u: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """``mean + u W^-1``, float32."""
        self._check(u, needs_fit=True)
        if self.mode == "none":
            return u.float()
        if not self.has_matrix:
            return u.float() / self.scale.float() + self.mean.float()
        with full_float32():
            return torch.addmm(self.mean.float(), u.float(), self.inverse_matrix.float())

    def project(self, difference: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """``difference W``, float32: maps a difference of two vectors, which has no mean."""
        if not self.has_matrix:
            return difference.float() * self.scale.float()
        with full_float32():
            return difference.float() @ self.matrix.float()

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"dim={self.dim}, mode={self.mode!r}"

    def _check(self, x: Tensor, *, needs_fit: bool = False) -> None:
        if needs_fit and not bool(self.fitted):
            raise StateError("This standardizer is not fitted yet: call its fit() first.")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"Vectors have shape {tuple(x.shape)}; expected [M, {self.dim}].")

    def _checked_metric(self, metric: Tensor) -> Tensor:
        if metric.shape != (self.dim, self.dim):
            raise InputError(
                f"The metric has shape {tuple(metric.shape)}; expected [{self.dim}, {self.dim}]."
            )
        metric = metric.double().to(self.mean.device)
        largest = metric.abs().max()
        if not bool(largest.isfinite()):
            raise InputError("The metric has values that are not finite.")
        if bool((metric - metric.T).abs().max() > 1e-4 * largest):
            raise InputError("The metric is not symmetric: G must equal its transpose.")
        return metric

    def _set_matrix(self, symmetric: Tensor, power: float, smallest: float) -> None:
        """Sets W to a power of a symmetric positive semidefinite float64 matrix.

        If no eigenvalue is above ``smallest``, W is the identity.
        """
        values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
        largest = values[-1]
        if bool(values[0] < -1e-4 * largest.abs()):
            raise InputError(
                "The metric is not positive semidefinite: its eigenvalues run from "
                f"{float(values[0]):.3g} to {float(largest):.3g}."
            )
        if bool(largest <= smallest):
            values = torch.ones_like(values)
        roots = values.clamp(min=RELATIVE_FLOOR * values[-1]).pow(power)
        self.matrix.copy_((vectors * roots) @ vectors.T)
        self.inverse_matrix.copy_((vectors / roots) @ vectors.T)


def covariance(x: Float[Tensor, "M D"], mean: Float[Tensor, " D"]) -> Float[Tensor, "D D"]:
    """Covariance in float64, in pieces: a float64 copy of all of x may not fit."""
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for piece in x.split(65_536):
        centred = piece.double() - mean
        total += centred.T @ centred
    return total / len(x)


def _inverse_deviation(variance: Tensor, smallest: float) -> Tensor:
    largest = variance.max()
    if bool(largest <= smallest):
        return torch.ones_like(variance)
    usable = variance > RELATIVE_FLOOR * largest
    return torch.where(usable, variance, largest).rsqrt()


def _resolution(mean: Tensor) -> float:
    """Variance that rounding alone may give float32 values around this mean."""
    return float(mean.abs().max() * torch.finfo(torch.float32).eps) ** 2
