"""One quantizer of a comparison: fitted, measured, its decoder finetuned, measured again."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tokenizer.evaluation.coding import timed
from tokenizer.evaluation.comparison.measures import HeldOut, measure_audio, measure_codes
from tokenizer.evaluation.comparison.specs import CompareConfig, QuantizerSpec
from tokenizer.evaluation.comparison.units import unit, with_peak_memory
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.loading import load_tokenizer
from tokenizer.model.parts import DecoderName
from tokenizer.quantizers.base import Quantizer
from tokenizer.saving import write_json
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.clips import Clip, identity
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
from tokenizer.training.quantizer import cache_latents, fit_quantizer


@dataclass
class Workbench:
    """What all quantizers of a comparison share."""

    base: LatentTokenizer  # the autoencoder, on its device
    train: list[Clip]
    clips: list[Clip]  # to measure on
    out: Path
    config: CompareConfig
    progress: bool

    def __post_init__(self) -> None:
        self.autoencoder = LatentTokenizer.from_autoencoder(self.base.autoencoder).fingerprint
        self.held_out_identity = identity(self.clips, modified=True)

    @cached_property
    def held_out(self) -> HeldOut:
        """The clips to measure on, encoded once."""
        return HeldOut.encode(self.base, self.clips)

    def load(self, path: Path) -> LatentTokenizer:
        """A tokenizer on the device of the comparison."""
        return load_tokenizer(path).to(self.base.device)  # pyright: ignore[reportArgumentType]

    def bar(self, title: str) -> tqdm:
        """A progress bar over the clips to measure on."""
        return tqdm(total=len(self.clips), desc=title, unit="clip", disable=not self.progress)

    def measure(
        self,
        tokenizer: LatentTokenizer,
        held_out: HeldOut,
        counts: list[int],
        decoder: DecoderName,
        *,
        same_latents: bool = True,
    ) -> dict[str, Any]:
        """Figures of every number of codebooks and the use of codes, with one decoder."""
        quantizer = tokenizer.quantizer
        assert quantizer is not None
        codes, rates, use = measure_codes(
            quantizer, held_out, counts, tokenizer.frame_rate, same_latents=same_latents
        )
        with self.bar(f"measure, {decoder} decoder") as bar:
            quality = measure_audio(tokenizer, held_out, codes, decoder, advance=bar.update)
        for rate in rates:
            rate[decoder] = quality[rate["n_codebooks"]]
        return {"rates": rates, "code_counts": use}


@dataclass
class Trial:
    """A quantizer to fit with ``num_codebooks`` and to measure with each of ``counts``, most first.

    The folder is for its results, ``model`` and ``finetuned/model``.
    """

    bench: Workbench
    spec: QuantizerSpec
    num_codebooks: int
    counts: list[int]
    folder: Path

    def __post_init__(self) -> None:
        bench = self.bench
        self.finetuned = self.folder / "finetuned"
        self.fit_request: dict[str, Any] = {
            "autoencoder": bench.autoencoder,
            "train": identity(bench.train, modified=True),
            "spec": {k: v for k, v in self.spec.to_dict().items() if k != "name"},
            "num_codebooks": self.num_codebooks,
            "codebook_size": bench.config.codebook_size,
            "fit": asdict(bench.config.fit),
        }
        held_out = {"held_out": bench.held_out_identity, "counts": self.counts}
        self.measure_request: dict[str, Any] = {"fit": self.fit_request} | held_out

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was fitted, and the figures of it; without what earlier runs have done already."""
        fit = unit(self.folder / "fit.json", self.fit_request, self.fit)
        if self.bench.progress:
            counts = ", ".join(map(str, self.counts))
            tqdm.write(f"{self.spec.name}: {counts} codebooks", file=sys.stderr)
        measured = unit(
            self.folder / "measured.json", self.measure_request, lambda: self.measure("continuous")
        )
        loop = self.bench.config.finetune
        if loop is None:
            return fit, measured
        tuning = {"fit": self.fit_request, "loop": asdict(loop)}
        tuned = unit(self.folder / "finetune.json", tuning, lambda: self.finetune(tuning))
        tuned_model = self._relative(self.finetuned / "model")
        fit |= {"finetune_seconds": tuned["seconds"], "finetuned_model": tuned_model}
        after = unit(
            self.folder / "measured-finetuned.json",
            self.measure_request | {"tuning": tuning},
            lambda: self.measure("finetuned"),
        )
        for rate, other in zip(measured["rates"], after["rates"], strict=True):
            rate["finetuned"] = other["finetuned"]
        return fit, measured

    def fit(self) -> dict[str, Any]:
        """Fits the quantizer, saves the tokenizer, and returns what that took."""
        bench = self.bench
        tokenizer = LatentTokenizer.from_autoencoder(bench.base.autoencoder)
        tokenizer.config.default_gain = bench.base.config.default_gain
        tokenizer.to(bench.base.device)  # pyright: ignore[reportArgumentType]
        quantizer = self.spec.build(
            tokenizer.coded_dim,
            num_codebooks=self.num_codebooks,
            codebook_size=bench.config.codebook_size,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        # A fit with other settings must not resume from what a killed one has left.
        identity = json.dumps(self.fit_request, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        checkpoint = self.folder / f"fit-{digest}.safetensors"
        cache = bench.out / "latents.npy"
        # All quantizers share the encoded latents, so no fit's time includes encoding.
        frames = len(cache_latents(tokenizer, bench.train, cache, bench.config.fit))
        fit = partial(
            fit_quantizer,
            tokenizer,
            bench.train,
            quantizer.to(tokenizer.device),
            cache=cache,
            config=bench.config.fit,
            checkpoint=checkpoint,
            progress=bench.progress,
        )
        (_, seconds), peak = with_peak_memory(lambda: timed(fit))
        tokenizer.save_pretrained(self.folder / "model")
        checkpoint.unlink(missing_ok=True)
        return {
            "num_codebooks": quantizer.num_codebooks,
            "codebook_sizes": quantizer.codebook_sizes,
            "config": quantizer.to_config(),
            "frames": frames,
            "seconds": seconds,
            "peak_mib": peak,
            "size_mib": _size_mib(quantizer),
            "model": self._relative(self.folder / "model"),
        }

    def measure(self, decoder: DecoderName) -> dict[str, Any]:
        """Measures the saved tokenizer with one of its decoders."""
        parent = self.finetuned if decoder == "finetuned" else self.folder
        tokenizer = self.bench.load(parent / "model")
        return self.bench.measure(tokenizer, self.bench.held_out, self.counts, decoder)

    def finetune(self, tuning: dict[str, Any]) -> dict[str, Any]:
        """Finetunes a decoder and saves the tokenizer; a run with another request starts again."""
        bench, run, loop = self.bench, self.finetuned, self.bench.config.finetune
        assert loop is not None
        started, request = run / "asked.json", json.loads(json.dumps(tuning))
        if not started.exists() or json.loads(started.read_text()) != request:
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True)
            write_json(started, tuning)
        tokenizer = bench.load(self.folder / "model")
        _, seconds = timed(
            lambda: finetune_decoder(
                tokenizer,
                bench.train,
                run,
                loop=loop,
                losses=ReconstructionConfig(),
                finetune=FinetuneConfig(min_codebooks=min(self.counts)),
                augmentation=Augmentation(),
                num_held_out=min(16, len(bench.train) // 5),
                progress=bench.progress,
            )
        )
        tokenizer.save_pretrained(run / "model")
        return {"seconds": seconds}

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.bench.out))


def _size_mib(quantizer: Quantizer) -> float:
    """Size of all that a quantizer stores, without the statistics of its codes."""
    tensors = {k: v for k, v in quantizer.state_dict().items() if not k.endswith("code_counts")}
    return sum(v.numel() * v.element_size() for v in tensors.values()) / 2**20
