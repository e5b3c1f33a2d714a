"""`latok compare`: one frozen representation, many quantizers, many rates.

Work is cut into units (fit, measure, finetune, measure again; for each quantizer), whose results
are kept in ``units/``: a run that was killed goes on where it was, and a run that is asked for more
computes only what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tokenizer.devices import device_of
from tokenizer.errors import InputError, MissingFileError
from tokenizer.evaluation.comparison.measures import HeldOut, measure_audio, measure_codes
from tokenizer.evaluation.comparison.settings import CompareConfig, Competitor
from tokenizer.evaluation.comparison.specs import QuantizerSpec, codebooks_within
from tokenizer.evaluation.comparison.units import PeakMemory, unit, write_json
from tokenizer.model.core import DecoderName
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.loading import load_for_fitting, load_tokenizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.data import Augmentation, Clip, identity
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
from tokenizer.training.quantizer import cache_latents, fit_quantizer

FORMAT_VERSION = 1


def compare(
    model: str | Path,
    train: list[Clip],
    held_out: list[Clip],
    specs: Sequence[QuantizerSpec],
    out: Path,
    config: CompareConfig,
    *,
    also: Sequence[Competitor] = (),
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Fits quantizers to the latents of one autoencoder and measures them on held-out audio.

    Args:
        model: A tokenizer, of which only the autoencoder is used, or another library's autoencoder
            checkpoint, as for `latok fit`.
        train: Audio to fit to, and to finetune decoders on.
        held_out: Audio to measure on.
        specs: What to fit.
        out: Folder of the comparison. ``units/QUANTIZER/model`` are ordinary tokenizers.
        config: What is equal for all.
        also: Tokenizers to measure beside them, as they are.
        device: Where to compute.
        progress: Whether to show bars.

    Returns:
        JSON values, which are also in ``out/comparison.json``; docs/results.md describes them.

    Raises:
        ValueError: If a specification does not fit the latents, names clash, or a competitor has
            another sampling rate.
    """
    if not specs and not also:
        raise InputError("Nothing to compare: name quantizers or other tokenizers.")
    names = [spec.name for spec in specs] + [other.name for other in also]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two entries of the comparison are called {twice[0]!r}.")
    base = load_for_fitting(str(model)).to(device_of(device))  # pyright: ignore[reportArgumentType]
    run = _Comparison(base, train, held_out, out, config, progress)
    # Everything that can be refused is refused before hours of work.
    plans = [run.plan(spec) for spec in specs]
    for other in also:
        run.check(other)
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": str(model),
        "autoencoder": base.config.autoencoder,
        "sampling_rate": base.sampling_rate,
        "frame_rate": base.frame_rate,
        "latent_dim": base.latent_dim,
        "config": asdict(config),
        "train": {"clips": len(train), "seconds": _seconds(train)},
        "held_out": {"clips": [clip.name for clip in held_out], "seconds": _seconds(held_out)},
        "machine": {"cpus": os.cpu_count(), "device": device},
        "continuous": run.continuous(),
        "entries": [],
    }
    for spec, plan in zip(specs, plans, strict=True):
        result["entries"].append(run.fitted_entry(spec, plan))
        write_json(out / "comparison.json", result)
    for other in also:
        result["entries"].append(run.competitor_entry(other))
        write_json(out / "comparison.json", result)
    return result


def read_comparison(folder: str | Path) -> dict[str, Any]:
    """Reads what `compare` left in a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another version.
    """
    path = Path(folder) / "comparison.json"
    if not path.is_file():
        raise MissingFileError(f"No comparison.json in {folder}: make one with `latok compare`.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}. Run compare again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object.")
    if found.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path} has format {found.get('format_version')}; run compare again.")
    return found


def _seconds(clips: Sequence[Clip]) -> float:
    return sum(clip.num_samples / clip.sampling_rate for clip in clips)


def _size(quantizer: Quantizer) -> float:
    """MiB of all that a quantizer keeps, but for its statistics."""
    kept = {k: v for k, v in quantizer.state_dict().items() if not k.endswith("code_counts")}
    return sum(v.numel() * v.element_size() for v in kept.values()) / 2**20


class _Comparison:
    """The parts of `compare`."""

    def __init__(
        self,
        base: LatentTokenizer,
        train: list[Clip],
        held_out: list[Clip],
        out: Path,
        config: CompareConfig,
        progress: bool,
    ) -> None:
        self.base, self.train, self.clips = base, train, held_out
        self.out, self.config, self.progress = out, config, progress
        self._held_out: HeldOut | None = None
        self.budgets = [rate / base.frame_rate for rate in config.bitrates]
        raw = LatentTokenizer.from_autoencoder(base.autoencoder)
        self.asked = {
            "autoencoder": raw.fingerprint,
            "held_out": identity(held_out, modified=True),
        }

    def plan(self, spec: QuantizerSpec) -> dict[int, list[int]]:
        size = self.config.codebook_size
        plan = spec.plan(self.base.coded_dim, self.budgets, size)
        for count in plan:
            spec.build(self.base.coded_dim, num_codebooks=count, codebook_size=size)
        return plan

    def check(self, other: Competitor) -> None:
        tokenizer = load_tokenizer(other.path)
        if tokenizer.sampling_rate != self.base.sampling_rate:
            raise InputError(
                f"{other.name} works at {tokenizer.sampling_rate} Hz and the model at "
                f"{self.base.sampling_rate} Hz: their scores do not compare."
            )
        tokenizer.codebooks_for(max(self.config.bitrates))

    def held_out(self) -> HeldOut:
        if self._held_out is None:
            self._held_out = HeldOut.encode(self.base, self.clips)
        return self._held_out

    def measured(
        self,
        tokenizer: LatentTokenizer,
        held_out: HeldOut,
        counts: list[int],
        decoder: DecoderName,
        *,
        same_latents: bool = True,
    ) -> dict[str, Any]:
        """Figures of every rate and the use of codes, with one decoder."""
        quantizer = tokenizer.quantizer
        assert quantizer is not None
        codes, rates, use = measure_codes(
            quantizer, held_out, counts, tokenizer.frame_rate, same_latents=same_latents
        )
        with self._bar(f"measure, {decoder} decoder") as bar:
            heard = measure_audio(tokenizer, held_out, codes, decoder, advance=bar.update)
        for rate in rates:
            rate[decoder] = heard[rate["n_codebooks"]]
        return {"rates": rates, "code_counts": use}

    def _bar(self, what: str) -> tqdm:
        return tqdm(total=len(self.clips), desc=what, unit="clip", disable=not self.progress)

    def continuous(self) -> dict[str, Any]:
        """What no quantizer can beat: continuous latents."""

        def compute() -> dict[str, Any]:
            held_out = self.held_out()
            with self._bar("measure, continuous latents") as bar:
                found = measure_audio(self.base, held_out, None, "continuous", advance=bar.update)[
                    0
                ]
            return found | {"encode_x": held_out.seconds / max(held_out.encode_seconds, 1e-9)}

        return unit(self.out / "units" / "continuous.json", self.asked, compute)

    def fitted_entry(self, spec: QuantizerSpec, plan: dict[int, list[int]]) -> dict[str, Any]:
        """Fits a quantizer (or one for each rate) and measures it."""
        entry: dict[str, Any] = {
            "name": spec.name,
            "source": "fitted",
            "spec": spec.to_dict(),
            "fits": [],
            "rates": [],
            "code_counts": [],
        }
        for count, counts in plan.items():
            folder = self.out / "units" / spec.folder
            if len(plan) > 1:
                folder = folder / f"{count}-codebooks"
            fit = self._fit(spec, count, folder)
            found = self._measure(spec, counts, folder, fit)
            entry["fits"].append(fit["found"])
            entry["rates"] += found["rates"]
            entry["code_counts"] = entry["code_counts"] or found["code_counts"]
        return entry

    def _fit(self, spec: QuantizerSpec, count: int, folder: Path) -> dict[str, Any]:
        config = self.config
        asked = {
            "autoencoder": self.asked["autoencoder"],
            "train": identity(self.train, modified=True),
            "spec": {k: v for k, v in spec.to_dict().items() if k != "name"},
            "num_codebooks": count,
            "codebook_size": config.codebook_size,
            "fit": asdict(config.fit),
        }

        def compute() -> dict[str, Any]:
            tokenizer = LatentTokenizer.from_autoencoder(self.base.autoencoder)
            tokenizer.config.default_gain = self.base.config.default_gain
            tokenizer.to(self.base.device)  # pyright: ignore[reportArgumentType]
            quantizer = spec.build(
                tokenizer.coded_dim, num_codebooks=count, codebook_size=config.codebook_size
            )
            folder.mkdir(parents=True, exist_ok=True)
            # Another request must not stumble over what a killed fit has left.
            digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
            checkpoint = folder / f"fit-{digest}.safetensors"
            cache = self.out / "latents.npy"
            # Encoding serves all quantizers, so it is not part of any one's time.
            frames = len(cache_latents(tokenizer, self.train, cache, config.fit))
            start = time.perf_counter()
            with PeakMemory() as memory:
                fit_quantizer(
                    tokenizer,
                    self.train,
                    quantizer.to(tokenizer.device),
                    cache=cache,
                    config=config.fit,
                    checkpoint=checkpoint,
                    progress=self.progress,
                )
            seconds = time.perf_counter() - start
            tokenizer.save_pretrained(folder / "model")
            checkpoint.unlink(missing_ok=True)
            return {
                "num_codebooks": quantizer.num_codebooks,
                "codebook_sizes": quantizer.codebook_sizes,
                "config": quantizer.to_config(),
                "frames": frames,
                "seconds": seconds,
                "peak_mib": memory.mebibytes,
                "size_mib": _size(quantizer),
                "model": str((folder / "model").relative_to(self.out)),
            }

        return {"asked": asked, "found": unit(folder / "fit.json", asked, compute)}

    def _measure(
        self, spec: QuantizerSpec, counts: list[int], folder: Path, fit: dict[str, Any]
    ) -> dict[str, Any]:
        if self.progress:
            tqdm.write(f"{spec.name}: {', '.join(map(str, counts))} codebooks", file=sys.stderr)
        asked = {"fit": fit["asked"], "held_out": self.asked["held_out"], "counts": counts}

        def plain() -> dict[str, Any]:
            tokenizer = load_tokenizer(folder / "model").to(self.base.device)  # pyright: ignore
            return self.measured(tokenizer, self.held_out(), counts, "continuous")

        found = unit(folder / "measured.json", asked, plain)
        loop = self.config.finetune
        if loop is None:
            return found
        tuning = {"fit": fit["asked"], "loop": asdict(loop)}
        run = folder / "finetuned"

        def finetune() -> dict[str, Any]:
            started = run / "asked.json"
            if not started.exists() or json.loads(started.read_text()) != json.loads(
                json.dumps(tuning)
            ):
                # Of another quantizer or schedule: its checkpoint is of no use.
                shutil.rmtree(run, ignore_errors=True)
                write_json(started, tuning)
            tokenizer = load_tokenizer(folder / "model").to(self.base.device)  # pyright: ignore
            start = time.perf_counter()
            finetune_decoder(
                tokenizer,
                self.train,
                run,
                loop=loop,
                losses=ReconstructionConfig(),
                finetune=FinetuneConfig(min_codebooks=min(counts)),
                augmentation=Augmentation(),
                num_held_out=min(16, len(self.train) // 5),
                progress=self.progress,
            )
            tokenizer.save_pretrained(run / "model")
            return {"seconds": time.perf_counter() - start}

        tuned = unit(folder / "finetune.json", tuning, finetune)
        fit["found"] |= {
            "finetune_seconds": tuned["seconds"],
            "finetuned_model": str((run / "model").relative_to(self.out)),
        }

        def finetuned() -> dict[str, Any]:
            tokenizer = load_tokenizer(run / "model").to(self.base.device)  # pyright: ignore
            return self.measured(tokenizer, self.held_out(), counts, "finetuned")

        after = unit(folder / "measured-finetuned.json", asked | {"tuning": tuning}, finetuned)
        for rate, other in zip(found["rates"], after["rates"], strict=True):
            rate["finetuned"] = other["finetuned"]
        return found

    def competitor_entry(self, other: Competitor) -> dict[str, Any]:
        """Measures a finished tokenizer on latents of its own."""
        tokenizer = load_tokenizer(other.path).to(self.base.device)  # pyright: ignore
        sizes = tokenizer.codebook_sizes
        budgets = [rate / tokenizer.frame_rate for rate in self.config.bitrates]
        counts = sorted({codebooks_within(sizes, b) for b in budgets} - {0}, reverse=True)
        asked = {
            "model": tokenizer.fingerprint,
            "held_out": self.asked["held_out"],
            "counts": counts,
        }

        def compute() -> dict[str, Any]:
            held_out = HeldOut.encode(tokenizer, self.clips)
            return self.measured(
                tokenizer, held_out, counts, tokenizer.codes_decoder, same_latents=False
            )

        found = unit(self.out / "units" / f"also-{tokenizer.fingerprint}.json", asked, compute)
        return {
            "name": other.name,
            "source": "also",
            "model": other.path,
            "fingerprint": tokenizer.fingerprint,
            **found,
        }
