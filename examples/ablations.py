"""What decides the design of the bundled model: variants trained on an equal budget.

    python examples/ablations.py AUDIO --out DIR [--steps 400] [--only latent_dim ...]

Each variant goes through stage 1 and 2 (and stage 3 where that is the question) on the same crops,
and is measured on clips held out of AUDIO. A variant that is done is not done again, so a run can
be stopped and started. The table is printed and written to DIR/ablations.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from tokenizer.autoencoders import AUTOENCODERS
from tokenizer.autoencoders.lapped.config import LappedConfig
from tokenizer.autoencoders.lapped.encoder import LappedEncoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.evaluation.evaluate import Condition, as_table, evaluate
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.saving import write_json, write_text
from tokenizer.training import CropTrainingConfig
from tokenizer.training.adversarial import AdversarialConfig
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig, train_autoencoder
from tokenizer.training.clips import Clip, scan, split_clips
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
from tokenizer.training.quantizer import FitConfig, fit_quantizer

RATES = (16_000, 10_000, 3_000)
# The loss of the base model, of which every other row is a change.
LOSSES: dict[str, Any] = {"mel_weight": 1.0, "waveform_weight": 1.0, "energy_weight": 0.0}


class PlainEncoder(LappedEncoder):
    """Sees the coefficients as they are."""

    @staticmethod
    def features(c: torch.Tensor) -> torch.Tensor:
        """The coefficients, twice, to keep the size of the network."""
        return torch.cat([c, c], dim=-1)


class EnvelopeEncoder(LappedEncoder):
    """Sees coefficients over their envelope, and the envelope's logarithm."""

    @staticmethod
    def features(c: torch.Tensor) -> torch.Tensor:
        """The envelope is the root mean square over nine bins and three frames."""
        power = torch.nn.functional.avg_pool2d(c.square()[:, None], (3, 9), 1, (1, 4))[:, 0]
        envelope = (power + 1e-10).sqrt()
        return torch.cat([c / envelope / 2, torch.log(envelope + 1e-5) / 3 + 1.5], dim=-1)


class _WithEncoder(LappedAutoencoder):
    encoder_class: ClassVar[type[LappedEncoder]]

    def __init__(self, config: LappedConfig) -> None:
        super().__init__(config)
        self.encoder = self.encoder_class(config)


class PlainLapped(_WithEncoder):
    """The bundled family with `PlainEncoder`."""

    kind, encoder_class = "ablation-plain", PlainEncoder


class EnvelopeLapped(_WithEncoder):
    """The bundled family with `EnvelopeEncoder`."""

    kind, encoder_class = "ablation-envelope", EnvelopeEncoder


for family in (PlainLapped, EnvelopeLapped):
    AUTOENCODERS[family.kind] = (__name__, family.__name__)


@dataclass(frozen=True)
class Variant:
    """How a model differs from the base one."""

    family: type[LappedAutoencoder] = LappedAutoencoder
    sizes: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    adversarial: AdversarialConfig | None = None


TRAINED: dict[str, dict[str, Variant]] = {
    "base": {"base": Variant()},
    "latent_dim": {f"D = {d}": Variant(sizes={"latent_dim": d}) for d in (64, 128, 192)},
    "detail": {"D = 192, 96 of them detail": Variant(sizes={"latent_dim": 192, "detail_dim": 96})},
    "frame_rate": {"50 Hz, D = 192": Variant(sizes={"hop_length": 882, "latent_dim": 192})},
    "features": {
        "plain features": Variant(PlainLapped),
        "envelope-normalised features": Variant(EnvelopeLapped),
    },
    "lookahead": {
        f"{n} frames of lookahead ({20 * (n + 1)} ms)": Variant(sizes={"lookahead": n})
        for n in (0, 1)
    },
    "noise": {
        "no latent noise": Variant(losses={"noise_range": (0.0, 0.0)}),
        "noise up to 0.35": Variant(losses={"noise_range": (-0.1, 0.35)}),
        "noise up to 1": Variant(losses={"noise_range": (-0.2, 1.0)}),
    },
    "lowpass": {"no low-pass augmentation": Variant(augmentation={"lowpass": 0.0})},
    "mel_weight": {
        f"mel weight {w:g}": Variant(losses={"mel_weight": w}) for w in (0.3, 3.0, 10.0)
    },
    "envelope": {
        "16 envelope latents": Variant(sizes={"envelope_dim": 16}),
        "16 envelope latents, mel weight 4, energy weight 5": Variant(
            sizes={"envelope_dim": 16}, losses={"mel_weight": 4.0, "energy_weight": 5.0}
        ),
    },
    "adversarial": {
        "adversarial": Variant(
            adversarial=AdversarialConfig(
                adversarial_weight=0.3, feature_weight=0.3, discriminator_channels=8
            )
        )
    },
}


@dataclass(frozen=True)
class Budget:
    """What every variant gets."""

    steps: int = 400
    finetune_steps: int = 150
    batch_size: int = 10
    mixed_precision: str = "bf16"
    encoder_width: int = 192
    encoder_depth: int = 4
    decoder_width: int = 256
    decoder_depth: int = 5
    iterations: int = 8
    max_frames: int = 150_000
    clips: int = 24
    seed: int = 0


def loop(budget: Budget, steps: int, learning_rate: float) -> CropTrainingConfig:
    """The loop of any stage."""
    return CropTrainingConfig(
        steps=steps,
        batch_size=budget.batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(100, steps // 4),
        ema_decay=0.99,
        validate_every=steps,
        mixed_precision=budget.mixed_precision,
        seed=budget.seed,
    )


def train(variant: Variant, clips: list[Clip], out: Path, budget: Budget) -> LatentTokenizer:
    """Stage 1; what is trained already is loaded."""
    model = out / "stage1" / "model"
    if (model / "config.json").exists():
        return LatentTokenizer.from_pretrained(model)
    sizes: dict[str, Any] = {"sampling_rate": 44_100, "hop_length": 441, "latent_dim": 96}
    names = ("encoder_width", "encoder_depth", "decoder_width", "decoder_depth")
    sizes |= {name: getattr(budget, name) for name in names} | variant.sizes
    torch.manual_seed(budget.seed)
    autoencoder = variant.family(LappedConfig(**sizes))
    train_autoencoder(
        autoencoder,
        clips,
        out / "stage1",
        loop=loop(budget, budget.steps, 1e-3),
        losses=ReconstructionConfig(**(LOSSES | variant.losses)),
        augmentation=Augmentation(**variant.augmentation),
        adversarial=variant.adversarial,
    )
    tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    tokenizer.save_pretrained(model)
    return tokenizer


def fit(
    tokenizer: LatentTokenizer, clips: list[Clip], out: Path, budget: Budget, **options: Any
) -> LatentTokenizer:
    """Stage 2: codebooks for the highest rate of `RATES`."""
    defaults: dict[str, Any] = {"iterations": budget.iterations, "max_points": budget.max_frames}
    quantizer = ResidualVectorQuantizer(
        tokenizer.coded_dim,
        round(RATES[0] / tokenizer.frame_rate / 10),
        1024,
        **(defaults | options),
    )
    fit_quantizer(
        tokenizer,
        clips,
        quantizer,
        cache=out / "latents.npy",
        config=FitConfig(max_frames=budget.max_frames, seed=budget.seed),
    )
    return tokenizer


def measure(tokenizer: LatentTokenizer, clips: list[Clip]) -> dict[str, float]:
    """SI-SDR and mel distance of the latents and at each rate."""
    rates = {f"{rate // 1000}": tokenizer.codebooks_for(rate) for rate in RATES}
    conditions = {"continuous": Condition(None, "continuous")}
    conditions |= {rate: Condition(n, tokenizer.codes_decoder) for rate, n in rates.items()}
    result = evaluate(tokenizer, clips, list(conditions.values()))["conditions"]
    means = {name: result[condition.name]["mean"] for name, condition in conditions.items()}
    return {
        f"{metric} {name}": mean[metric]
        for metric in ("si_sdr", "mel")
        for name, mean in means.items()
    }


class Ablations:
    """All variants over one folder, each done once.

    Args:
        audio: Folder of audio.
        out: Folder of results; what it holds is not done again.
        budget: What every variant gets.
    """

    def __init__(self, audio: Path, out: Path, budget: Budget) -> None:
        self.out, self.budget = out, budget
        self.train, self.judged = split_clips(scan(audio), budget.clips)
        self.rows: list[tuple[str, dict[str, float]]] = []
        out.mkdir(parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        """Where a row's results are."""
        return self.out / "".join(c if c.isalnum() else "-" for c in name)

    def do(self, name: str, make: Callable[[Path], LatentTokenizer]) -> None:
        """One row: made and measured, or read if an earlier run got that far."""
        folder = self.folder(name)
        result = folder / "result.json"
        if not result.exists():
            folder.mkdir(exist_ok=True)
            start = time.monotonic()
            measured = measure(make(folder).eval(), self.judged)
            measured["minutes"] = (time.monotonic() - start) / 60
            write_json(result, measured)
        self.rows.append((name, json.loads(result.read_text())))

    def trained(self, group: str) -> None:
        """Variants of stage 1."""
        for name, variant in TRAINED[group].items():
            self.do(
                name,
                lambda folder, v=variant: fit(
                    train(v, self.train, folder, self.budget), self.train, folder, self.budget
                ),
            )

    def fitted(self) -> None:
        """Stage 2 on the base representation, and standardization on others too."""
        for base in ("base", "no latent noise", "D = 192"):
            variant = (TRAINED["base"] | TRAINED["noise"] | TRAINED["latent_dim"])[base]
            folder = self.folder(base)
            changes: list[dict[str, Any]] = [
                {"standardization": mode} for mode in ("scalar", "channel", "whiten", "decoder")
            ]
            if base == "D = 192":
                # Whether this metric makes dimensions free that matter little.
                changes = [{"standardization": "decoder"}]
            if base == "base":
                changes += [{"beam_width": width} for width in (4, 16)]
                changes += [{"beam_width": 4, "refinements": 1}]
                changes += [{"max_points": self.budget.max_frames // share} for share in (2, 4)]
            for change in changes:
                said = (f"{option.replace('_', ' ')} {value}" for option, value in change.items())
                self.do(
                    ", ".join([base, *said]),
                    lambda _, v=variant, f=folder, c=change: fit(
                        train(v, self.train, f, self.budget), self.train, f, self.budget, **c
                    ),
                )

    def finetuned(self) -> None:
        """Stage 3, with and without discriminators."""
        envelope = "16 envelope latents"
        for name, of, variant, adversarial in (
            ("base, finetuned", "base", Variant(), None),
            (f"{envelope}, finetuned", envelope, TRAINED["envelope"][envelope], None),
            (
                "base, finetuned, adversarial",
                "base",
                Variant(),
                TRAINED["adversarial"]["adversarial"].adversarial,
            ),
        ):

            def make(
                folder: Path,
                of: str = of,
                v: Variant = variant,
                a: AdversarialConfig | None = adversarial,
            ) -> LatentTokenizer:
                base = self.folder(of)
                tokenizer = train(v, self.train, base, self.budget)
                tokenizer = fit(tokenizer, self.train, base, self.budget)
                finetune_decoder(
                    tokenizer,
                    self.train,
                    folder / "stage3",
                    loop=loop(self.budget, self.budget.finetune_steps, 4e-4),
                    losses=ReconstructionConfig(**LOSSES),
                    finetune=FinetuneConfig(),
                    augmentation=Augmentation(),
                    adversarial=a,
                )
                return tokenizer

            self.do(name, make)

    def table(self) -> str:
        """Markdown: SI-SDR in dB and mel distance, side by side."""
        conditions = ["continuous", *(str(rate // 1000) for rate in RATES)]
        header = ["", *(c if c == "continuous" else f"{c} kbit/s" for c in conditions), "minutes"]
        rows = [
            [
                name,
                *(f"{r[f'si_sdr {c}']:.2f} / {r[f'mel {c}']:.3f}" for c in conditions),
                f"{r['minutes']:.1f}",
            ]
            for name, r in self.rows
        ]
        return as_table(rows, header)


def main() -> None:
    """Parses the command line."""
    assert __doc__
    groups = [*TRAINED, "quantizer", "finetuning"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    for each in fields(Budget):
        name = "--" + each.name.replace("_", "-")
        parser.add_argument(name, type=type(each.default), default=each.default)
    options = parser.parse_args()
    budget = Budget(**{each.name: getattr(options, each.name) for each in fields(Budget)})
    ablations = Ablations(options.audio, options.out, budget)
    for group in options.only:
        if group == "quantizer":
            ablations.fitted()
        elif group == "finetuning":
            ablations.finetuned()
        else:
            ablations.trained(group)
        write_text(options.out / "ablations.md", ablations.table() + "\n")
    print(ablations.table())


if __name__ == "__main__":
    main()
