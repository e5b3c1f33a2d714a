"""Adversarial and feature matching losses, balanced against the reconstruction losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.training.config import check_fields
from tokenizer.training.discriminators import Discriminators


@dataclass(frozen=True)
class AdversarialConfig:
    """How much weight discriminators have.

    Weights are shares of the gradient, not factors of losses: at the reconstruction, each term's
    gradient is rescaled to ``weight`` times the norm of the reconstruction losses' gradient. So
    no term can drown the others, whatever its scale (the idea of the balancer of Défossez et al.
    2022, "High Fidelity Neural Audio Compression").

    Attributes:
        adversarial_weight: Weight of the adversarial loss; 0 trains without discriminators.
        feature_weight: Weight of the feature matching loss.
        adversarial_start: Steps before the discriminators are used.
        discriminator_channels: Width of the discriminators; 32 is the published size (about 43
            million parameters).
        discriminator_rate: Learning rate of the discriminators over the model's.
    """

    adversarial_weight: float = 0.0
    feature_weight: float = 0.0
    adversarial_start: int = 0
    discriminator_channels: int = 32
    discriminator_rate: float = 0.5

    def __post_init__(self) -> None:
        not_negative = ("adversarial_weight", "feature_weight", "adversarial_start")
        bounds = dict.fromkeys(not_negative, (0, math.inf))
        check_fields(self, positive=("discriminator_channels", "discriminator_rate"), **bounds)
        if self.feature_weight and not self.adversarial_weight:
            raise InputError("feature_weight needs discriminators: adversarial_weight > 0.")


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Least-squares loss of the discriminators (Mao et al. 2017), averaged over them."""
    terms = [
        (1 - r[-1].float()).square().mean() + f[-1].float().square().mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def adversarial_loss(fake: list[list[Tensor]]) -> Tensor:
    """Least-squares loss of what the discriminators judge, averaged over them."""
    return torch.stack([(1 - f[-1].float()).square().mean() for f in fake]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Relative L1 distance of all feature maps but the scores (Kumar et al. 2019, "MelGAN").

    Each map's distance is divided by the map's mean magnitude, so that wide layers do not rule.
    """
    terms = [
        (a.float() - b.float()).abs().mean() / a.float().abs().mean().clamp(min=1e-5)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r[:-1], f[:-1], strict=True)
    ]
    return torch.stack(terms).mean()


def balance(
    output: Tensor, reference: Tensor, terms: dict[str, Tensor], weights: dict[str, float]
) -> Tensor:
    """One loss whose gradient at ``output`` mixes those of several in given shares.

    Args:
        output: What all losses are functions of.
        reference: The loss whose value is returned and whose gradient keeps its scale.
        terms: Losses that are rescaled; those whose gradient is zero or not finite are left out.
        weights: For each term, the norm of its gradient over that of the reference.
    """
    (total,) = torch.autograd.grad(reference, output, retain_graph=True)
    scale = total.norm()
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        norm = gradient.norm()
        if bool(torch.isfinite(norm)) and float(norm) > 0:
            total = total + weights[name] * scale / norm * gradient
    mixed = (output * total).sum()
    return mixed + (reference - mixed).detach()


class Adversary(nn.Module):
    """Discriminators, and the losses that come from them, in float32 or ("bf16") bfloat16."""

    def __init__(self, config: AdversarialConfig, mixed_precision: str) -> None:
        super().__init__()
        if mixed_precision == "fp16":
            raise InputError(
                "Adversarial training needs mixed_precision 'no' or 'bf16': one loss scale of "
                "fp16 cannot serve two optimizers."
            )
        self.config, self.mixed = config, mixed_precision == "bf16"
        self.discriminators = Discriminators(channels=config.discriminator_channels)
        # Steps of the run, counted by the trainer: a buffer, so that checkpoints keep it.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def add(
        self,
        losses: dict[str, Tensor],
        estimate: Float[Tensor, "B C N"],
        target: Float[Tensor, "B C N"],
    ) -> dict[str, Tensor]:
        """Replaces ``"loss"`` by the balanced one, and adds ``"discriminator"`` and the terms.

        Only the discriminators minimise ``"discriminator"``. Audio is at unit loudness; ``"loss"``
        is a function of ``estimate``, which has its graph.
        """
        if int(self.steps) < self.config.adversarial_start:
            return losses
        with torch.autocast(estimate.device.type, torch.bfloat16, enabled=self.mixed):
            real = self.discriminators(target)
            fake = self.discriminators(estimate.detach())
            judge = discriminator_loss(real, fake)
            # Their own weights get no gradient from what they judge.
            self.discriminators.requires_grad_(False)
            seen = self.discriminators(estimate)
            self.discriminators.requires_grad_(True)
            terms = {"adversarial": adversarial_loss(seen)}
            if self.config.feature_weight:
                known = [[feature.detach() for feature in features] for features in real]
                terms["features"] = feature_loss(known, seen)
        config = self.config
        weights = {"adversarial": config.adversarial_weight, "features": config.feature_weight}
        total = balance(estimate, losses["loss"], terms, weights)
        return losses | terms | {"loss": total, "discriminator": judge}


def make_adversary(
    config: AdversarialConfig | None, mixed_precision: str, seed: int
) -> Adversary | None:
    """The discriminators of a run, the same on every process; None if it trains without."""
    if config is None or not config.adversarial_weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 7)
        return Adversary(config, mixed_precision)
