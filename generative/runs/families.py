"""Training runs: a prepared dataset, a tokenizer and a family of models, into one folder.

The folder: ``log.jsonl``, ``curves.png``, ``tensorboard/``, ``samples/step-*/`` and, at the end,
``model/`` with its card and ``run.json``, which says what was trained on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generative.protocol import Batch
from generative.runs.batches import (
    FrameCollator,
    make_collator,
    training_batches,
    validation_batches,
)
from generative.runs.generation import generate, make_request, save_clips
from generative.runs.loading import RUN_FILE, tokenizer_identity
from generative.runs.model_card import write_card
from generative.runs.prepared_data import PreparedData, load_prepared, median_gains
from generative.training.tasks import LossModule, ModelTask
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer, __version__, load_tokenizer
from tokenizer.errors import InputError
from tokenizer.saving import write_json
from tokenizer.training import RunLog, Trainer, is_main_process, load_average

# Samples that are made while training: one a class, at most so many, so long.
MAX_PREVIEWS = 4
PREVIEW_SECONDS = 4.0
PREVIEW_GUIDANCE = 2.0


class PreparedTask(ModelTask):
    """Training on a prepared dataset, whose run ``info`` describes."""

    def __init__(
        self,
        model: Any,
        data: PreparedData,
        tokenizer: LatentTokenizer,
        config: TrainingConfig,
        info: dict[str, Any],
        preview_seconds: float,
    ) -> None:
        super().__init__(model)
        self.data, self.tokenizer, self.config = data, tokenizer, config
        self.info, self.preview_seconds = info, preview_seconds

    def _collator(self, seed: int) -> FrameCollator:
        return make_collator(
            self.data,
            self.tokenizer,
            crop_frames=self.config.crop_frames,
            seed=seed,
            n_codebooks=self.info.get("n_codebooks"),
            latent_dim=self.info.get("latent_dim"),
        )

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[Batch]:
        """See `training_batches`."""
        return training_batches(
            self.data,
            self._collator(self.config.seed),
            self.config,
            first=first,
            rank=rank,
            world_size=world_size,
            joint_channels=self.tokenizer.autoencoder.num_channels,
        )

    def validation(self) -> Iterator[Batch]:
        """See `validation_batches`."""
        collator = self._collator(self.config.seed + 1)
        return validation_batches(self.data, collator, batch_size=self.config.batch_size)

    def show(self, step: int, folder: Path, log: RunLog) -> None:
        """One clip of each class, the same noise each time."""
        labels = self.model.labels
        request = make_request(
            self.tokenizer,
            self.preview_seconds,
            labels=labels[:MAX_PREVIEWS] or (None,),
            guidance_scale=PREVIEW_GUIDANCE if labels else 1.0,
        )
        clips = list(generate(self.model, self.tokenizer, request, seed=self.config.seed))
        rate = self.tokenizer.sampling_rate
        entries = save_clips(iter(clips), folder, rate, {"step": step})
        names = [Path(entry["audio"]).stem for entry in entries]
        log.add_samples(step, [(n, c.audio, rate) for n, c in zip(names, clips, strict=True)])
        for name in names:
            log.add_picture(step, f"samples/{name}", _read_png(folder / f"{name}.png"))


def _read_png(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).astype(np.uint8)


def check_source(data: PreparedData, tokenizer: LatentTokenizer) -> None:
    """Refuses a tokenizer that did not make the dataset, and a dataset that is not complete.

    The tokenizer's decoder may have been finetuned since.
    """
    if not data.manifest.get("complete", True):
        raise InputError("The dataset's preparation was interrupted: run it again, it goes on.")
    expected = {data.manifest.get(name) for name in ("fingerprint", "codes_fingerprint")} - {None}
    fingerprints = {tokenizer.fingerprint}
    if tokenizer.quantizer is not None:
        fingerprints.add(tokenizer.codes_fingerprint)
    if expected and not expected & fingerprints:
        raise InputError(
            f"The dataset was prepared with tokenizer {data.manifest.get('fingerprint')}, this is"
            f" {tokenizer.fingerprint}. Name the right one with --tokenizer."
        )


def train_diffusion(
    folder: str | Path,
    out: str | Path,
    config: TrainingConfig,
    *,
    tokenizer: str | Path | None = None,
    held_out: float = 0.05,
    detail: bool = False,
    preview_seconds: float = PREVIEW_SECONDS,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Trains a `LatentDiffusion` on the latents of a prepared dataset; resumes.

    Args:
        folder: The dataset.
        out: Folder of the run.
        config: How long and how fast.
        tokenizer: Folder or hub id of the one that made the latents. Default: the bundled one.
        held_out: Share of the sources to validate on, where the dataset has no split for it.
        detail: Whether the model makes all latents, or those that codes stand for: these are fewer
            and easier to predict, and the decoder takes them too. The same where there is no
            detail (`tokenizer.model.core.TokenizerCore.coded_dim`).
        preview_seconds: Length of the samples made while training.
        progress: Whether to show a bar.
        options: Of `LatentDiffusion`: width, depth, ...
    """
    from generative.diffusion.latent_diffusion import LatentDiffusion

    data, tok, info = _open("diffusion", "latents", folder, tokenizer, held_out, options)
    dim = info["latent_dim"] = tok.latent_dim if detail else tok.coded_dim
    arguments = {"gains": median_gains(data), "fingerprint": info["identity"], **options}

    def build() -> LatentDiffusion:
        model = LatentDiffusion(dim, data.labels, **arguments)
        model.set_statistics(tok.latents_mean[:dim], tok.latents_std[:dim])
        return model

    build = _seeded(build, config.seed)
    task = PreparedTask(build(), data, tok, config, info, preview_seconds)
    return _train(build, task, Path(out), options, progress)


def train_language_model(
    folder: str | Path,
    out: str | Path,
    config: TrainingConfig,
    *,
    tokenizer: str | Path | None = None,
    n_codebooks: int | None = None,
    held_out: float = 0.05,
    preview_seconds: float = PREVIEW_SECONDS,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Trains a `CodecLM` on the codes of a prepared dataset; resumes.

    As `train_diffusion`, but ``n_codebooks`` says how many of the dataset's codebooks to learn
    (default: all), and ``options`` are those of `CodecLMConfig`: pattern, width, depth, ...
    """
    from generative.language_model.codec_lm import CodecLM
    from generative.language_model.config import CodecLMConfig

    data, tok, info = _open("language model", "codes", folder, tokenizer, held_out, options)
    available = np.shape(data.train[0]["codes"])[-1]
    if n_codebooks is not None and not 1 <= n_codebooks <= available:
        raise InputError(f"The dataset has codes of {available} codebooks, not {n_codebooks}.")
    n = info["n_codebooks"] = n_codebooks or available
    arguments = {"context_frames": config.crop_frames, "gains": median_gains(data), **options}
    model_config = CodecLMConfig.for_tokenizer(tok, n, labels=data.labels, **arguments)
    build = _seeded(lambda: CodecLM(deepcopy(model_config)), config.seed)
    task = PreparedTask(build(), data, tok, config, info, preview_seconds)
    return _train(build, task, Path(out), options, progress)


def _open(
    family: str, column: str, folder: str | Path, name: Any, held_out: float, options: dict
) -> tuple[PreparedData, LatentTokenizer, dict[str, Any]]:
    """The dataset, the tokenizer that made it, and the description of a run on them."""
    data = load_prepared(folder, column, held_out, captions=bool(options.get("text_encoder")))
    tokenizer = load_tokenizer(name)
    check_source(data, tokenizer)
    info = {
        "family": family,
        "version": __version__,
        "column": column,
        "data": str(folder),
        "tokenizer": None if name is None else str(name),
        "identity": tokenizer_identity(tokenizer, column),
        "labels": list(data.labels),
        "splits": dict(zip(("train", "held_out"), map(list, data.splits), strict=True)),
    }
    return data, tokenizer, info


def _seeded(build: Callable[[], Any], seed: int) -> Callable[[], Any]:
    def seeded() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return seeded


def _train(
    build: Callable[[], Any], task: PreparedTask, out: Path, options: dict[str, Any], progress: bool
) -> Any:
    data, config, info = task.data, task.config, task.info
    # What else a resumed run must share; the splits show in the numbers of rows.
    aside = ("version", "data", "tokenizer", "splits")
    rows = len(data.train), len(data.held_out)
    description = {k: v for k, v in info.items() if k not in aside}
    description |= {"model": options, "rows": list(rows)}
    # Some batches may have no caption; a label, or none, all have.
    conditional = bool(options.get("text_encoder"))
    how: Any = {"description": description, "conditional": conditional, "progress": progress}
    Trainer(task, config, out, **how).run()
    # A new one, as the trained one may be on a GPU, or in shards.
    model = build()
    load_average(out / "checkpoint", LossModule(model))
    model.eval()
    if is_main_process():
        model.save_pretrained(out / "model")
        write_card(out / "model", info, asdict(config), rows)
        write_json(out / RUN_FILE, info)
    return model
