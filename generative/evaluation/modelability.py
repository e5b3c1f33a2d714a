"""How well representations can be modelled: equal training on equal audio, and what comes of it.

`latok compare` judges a quantizer by what it reconstructs. A representation for generation has to
be learned as well: here each tokenizer gets a language model of its codes and a diffusion model of
its latents, all of one size and trained for the same time on the same audio. What they generate is
compared with the original recordings, not with their reconstructions, so that a tokenizer cannot
gain by losing what is hard to model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from datasets_scripts import RowOptions, prepare_dataset
from generative.evaluation.arithmetic import multiply_adds
from generative.evaluation.code_bits import language_model_bits
from generative.evaluation.comparison import evaluate_generations
from generative.evaluation.embeddings import EmbeddingSpace, embed_audio
from generative.evaluation.frechet import frechet_of_equal_sets
from generative.evaluation.modelability_config import ModelabilityConfig
from generative.evaluation.modelability_table import modelability_table
from generative.protocol import DiffusionSampling, TokenRow
from generative.runs.families import train_diffusion, train_language_model
from generative.runs.generation import (
    GeneratedClip,
    decode,
    generate_rows,
    make_request,
    save_clips,
)
from generative.runs.loading import load_run
from generative.runs.prepared_data import load_prepared
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.errors import InputError
from tokenizer.evaluation.coding import Condition, code_clip, read_clip
from tokenizer.evaluation.comparison.specs import Competitor, check_names
from tokenizer.evaluation.comparison.units import unit
from tokenizer.evaluation.evaluate import evaluate
from tokenizer.evaluation.perceptual import PerceptualMetrics
from tokenizer.saving import write_json, write_text
from tokenizer.training.clips import Clip, identity, scan

# Steps of the short run that measures how many a minute has.
_TRIAL_STEPS = 12
_MIN_STEPS = 20
_SPEED = "train/steps_per_second"
# Clips that are kept to listen to.
_SAVED_CLIPS = 8


@dataclass(frozen=True)
class Contest:
    """One comparison: the audio, the settings, the folder of its results."""

    train: Path
    held_out: Path
    out: Path
    config: ModelabilityConfig
    perceptual: tuple[str, ...] = ()
    device: str = "cpu"
    progress: bool = True

    def run(self, tokenizers: Sequence[Competitor]) -> dict[str, Any]:
        """Trains and measures the models of each tokenizer; resumes.

        Returns:
            JSON values: ``{"config", "entries": [...]}``, also in ``modelability.json``, and as a
            table in ``modelability.md``.

        Raises:
            ValueError: If names clash, or there is too little audio.
        """
        check_names(tokenizers)
        if not tokenizers:
            raise InputError("Nothing to compare: name tokenizers.")
        loaded = {other.name: load_tokenizer(other.path) for other in tokenizers}
        for tokenizer in loaded.values():
            if tokenizer.quantizer is not None:  # Refused before hours of work, not after.
                tokenizer.codebooks_for(self.config.bitrate)
        rate = min(tokenizer.sampling_rate for tokenizer in loaded.values())
        self.out.mkdir(parents=True, exist_ok=True)
        audio = _splits(self.train, self.held_out, self.out / "audio")
        clips = scan(self.held_out)
        result: dict[str, Any] = {"config": asdict(self.config), "sampling_rate": rate}
        result["entries"] = []
        for other in tokenizers:
            entrant = Entrant(self, other, loaded[other.name], audio, clips, rate)
            result["entries"] += entrant.entries()
            write_json(self.out / "modelability.json", result)
            write_text(self.out / "modelability.md", modelability_table(result) + "\n")
        return result


def _splits(train: Path, held_out: Path, folder: Path) -> Path:
    """A folder whose ``train`` and ``validation`` are the two folders of audio."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in (("train", train), ("validation", held_out)):
        if not target.is_dir():
            raise InputError(f"{target} is no folder: models are trained on a folder of audio.")
        link = folder / name
        if link.is_symlink() and link.resolve() == target.resolve():
            continue
        if link.is_symlink():
            raise InputError(f"{folder.parent} compares on {link.resolve()}: name another --out.")
        link.symlink_to(target.resolve(), target_is_directory=True)
    return folder


@dataclass
class Entrant:
    """A tokenizer in a `Contest`, on the ``clips`` held out, judged at ``rate`` Hz."""

    contest: Contest
    other: Competitor
    tokenizer: LatentTokenizer
    audio: Path
    clips: list[Clip]
    rate: int

    def __post_init__(self) -> None:
        self.config = self.contest.config
        self.folder = self.contest.out / "units" / self.tokenizer.fingerprint
        self.tokens = self.folder / "tokens"
        self.shared = {
            "tokenizer": self.other.path,
            "width": self.config.width,
            "depth": self.config.depth,
            "heads": self.config.heads,
            "progress": self.contest.progress,
        }

    def entries(self) -> list[dict[str, Any]]:
        """The figures of the tokenizer's language model, if it has codes, and diffusion model."""
        quantizer = self.tokenizer.quantizer
        n = None if quantizer is None else self.tokenizer.codebooks_for(self.config.bitrate)
        prepare_dataset(
            "audiofolder",
            self.audio,
            self.tokens,
            tokenizer=self.other.path,
            options=RowOptions(
                codes=n is not None,
                latents=True,
                n_codebooks=n,
                segment_seconds=2 * self.config.seconds,
                downmix=self.tokenizer.autoencoder.num_channels == 1,
            ),
            device=self.contest.device,
            progress=self.contest.progress,
        )
        entries = []
        if n is not None:
            train = partial(train_language_model, pattern=self.config.pattern, n_codebooks=n)
            entries.append(self._entry("language model", train, n))
        return [*entries, self._entry("diffusion", train_diffusion, None)]

    def _entry(self, family: str, train: Callable[..., Any], n: int | None) -> dict[str, Any]:
        config = self.config
        folder = self.folder / family.replace(" ", "-")
        request = {
            "config": asdict(config),
            "train": identity(scan(self.contest.train), modified=True),
            "held_out": identity(self.clips, modified=True),
            "codebooks": n,
            "perceptual": self.contest.perceptual,
        }

        def speed() -> dict[str, float]:
            run = folder / "trial"
            train(self.tokens, run, self._training(_TRIAL_STEPS), **self.shared)
            lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
            return {"steps_per_second": [x[_SPEED] for x in lines if _SPEED in x][-1]}

        def measured() -> dict[str, Any]:
            rate = unit(folder / "speed.json", request, speed)["steps_per_second"]
            steps = max(_MIN_STEPS, round(60 * config.minutes * rate))
            train(self.tokens, folder / "run", self._training(steps), **self.shared)
            return {"steps": steps, "steps_per_second": rate} | self._measure(folder / "run", n)

        entry = {"name": self.other.name, "family": family, "codebooks": n}
        return entry | unit(folder / "entry.json", request, measured)

    def _training(self, steps: int) -> TrainingConfig:
        trial = steps == _TRIAL_STEPS
        return TrainingConfig(
            steps,
            batch_size=self.config.batch_size,
            crop_frames=round(self.config.crop_seconds * self.tokenizer.frame_rate),
            warmup_steps=min(200, steps // 10),
            log_every=_TRIAL_STEPS // 3 if trial else 20,
            sample_every=0,
            validate_every=0,
            seed=self.config.seed,
        )

    def _measure(self, run: Path, n: int | None) -> dict[str, Any]:
        config, progress = self.config, self.contest.progress
        column = "latents" if n is None else "codes"
        model, tokenizer, _ = load_run(run, self.other.path, self.contest.device)
        data = load_prepared(self.tokens, column)
        real = [row | {"label": row.get("label")} for row in data.held_out]
        rows, labels = self._generate(model, tokenizer, n, [row["label"] for row in real])
        judged = evaluate_generations(
            real, rows, tokenizer, generated_labels=labels, seed=config.seed
        )
        decoded = [decode(tokenizer, row) for row in rows]
        clips = zip(rows, decoded, labels, islice(repeat(None), len(rows)), strict=True)
        clips = (GeneratedClip(*clip) for clip in islice(clips, _SAVED_CLIPS))
        save_clips(clips, run.parent / "clips", tokenizer.sampling_rate)
        passes = 1 if n is not None else config.solver_steps
        passes *= 1 if config.guidance == 1 else 2
        figures: dict[str, Any] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "gmac_per_second": passes * 1e-9 * multiply_adds(model, tokenizer.frame_rate),
            "kbps": None if n is None else 1e-3 * tokenizer.bitrate(n),
            "quality": self._quality(tokenizer, n),
            "frechet": self._distances(tokenizer, n, decoded),
            "vendi": {k: v["vendi"] for k, v in judged["diversity"]["mel"].items()},
            "classes": judged["classes"],
        }
        if n is not None:
            bits = language_model_bits(
                model,
                data.train,
                real,
                frame_rate=tokenizer.frame_rate,
                joint_channels=tokenizer.autoencoder.num_channels,
                progress=progress,
            )
            figures["lm_kbps"] = 1e-3 * bits["lm"]["bits_per_second"]
            figures["static_kbps"] = 1e-3 * bits["static"]["bits_per_second"]
        return figures

    def _generate(
        self, model: Any, tokenizer: LatentTokenizer, n: int | None, classes: list[str | None]
    ) -> tuple[list[TokenRow], list[str | None]]:
        """Rows with the classes of the held-out rows, in turn, and these classes."""
        config = self.config
        order = np.random.default_rng(config.seed).permutation(len(classes))
        labels = [classes[order[i % len(order)]] for i in range(config.clips)]
        labels = [label if label in model.labels else None for label in labels]
        request = make_request(
            tokenizer,
            config.seconds,
            labels=labels,
            n_codebooks=n,
            guidance_scale=config.guidance,
            diffusion=DiffusionSampling(config.solver_steps),
        )
        return [row for row, _, _ in generate_rows(model, request, seed=config.seed)], labels

    def _quality(self, tokenizer: LatentTokenizer, n: int | None) -> dict[str, float]:
        """Of reconstructions: no model can sound better."""
        condition = Condition(n, "continuous" if n is None else tokenizer.codes_decoder)
        metrics = PerceptualMetrics(self.contest.perceptual)
        result = evaluate(tokenizer, self.clips, [condition], perceptual=metrics, progress=False)
        return result["conditions"][condition.name]["mean"]

    def _distances(
        self, tokenizer: LatentTokenizer, n: int | None, generated: list[np.ndarray]
    ) -> dict[str, float]:
        """Of generated clips and of reconstructions from original recordings."""
        condition = Condition(n, "continuous" if n is None else tokenizer.codes_decoder)
        native, common = tokenizer.sampling_rate, self.rate
        originals = [read_clip(clip, common) for clip in self.clips]
        coded = [code_clip(tokenizer, read_clip(clip, native), condition) for clip in self.clips]
        real = embed_audio(originals, common, common)
        space = EmbeddingSpace.fit(real)
        sets = {"generated": generated, "reconstructed": [one.audio for one in coded]}
        points = {name: space(embed_audio(x, native, common)) for name, x in sets.items()}
        return frechet_of_equal_sets(space(real), points, self.config.seed)
