"""`latok compare`: one frozen representation, many quantizers, many rates.

The work is cut into units (`Trial`: fit, measure, finetune, measure again), whose results are kept
in ``units/``. A run that was killed resumes after its last unit, and a run with more quantizers or
rates computes only what is new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizer.devices import device_of
from tokenizer.errors import InputError, MissingFileError
from tokenizer.evaluation.comparison.measures import HeldOut, measure_audio
from tokenizer.evaluation.comparison.specs import (
    CompareConfig,
    Competitor,
    QuantizerSpec,
    check_names,
    codebooks_within,
)
from tokenizer.evaluation.comparison.trial import Trial, Workbench
from tokenizer.evaluation.comparison.units import unit
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.loading import load_for_fitting, load_tokenizer
from tokenizer.saving import write_json
from tokenizer.training.clips import Clip

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
    check_names([*specs, *also])
    base = load_for_fitting(str(model)).to(device_of(device))  # pyright: ignore[reportArgumentType]
    bench = Workbench(base, train, held_out, out, config, progress)
    # Everything that can be refused is refused before hours of work.
    budgets = [rate / base.frame_rate for rate in config.bitrates]
    dim, size = base.coded_dim, config.codebook_size
    plans = [spec.plan(dim, budgets, size) for spec in specs]
    for spec, plan in zip(specs, plans, strict=True):
        for count in plan:
            spec.build(dim, num_codebooks=count, codebook_size=size)
    for other in also:
        load_beside(other, base).codebooks_for(max(config.bitrates))
    out.mkdir(parents=True, exist_ok=True)
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
        "continuous": _measure_continuous(bench),
        "entries": [],
    }
    for spec, plan in zip(specs, plans, strict=True):
        result["entries"].append(_fitted_entry(bench, spec, plan))
        write_json(out / "comparison.json", result)
    for other in also:
        result["entries"].append(_competitor_entry(bench, other))
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}. Run compare again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object.")
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path} has format {content.get('format_version')}; run compare again.")
    return content


def _seconds(clips: Sequence[Clip]) -> float:
    return sum(clip.num_samples / clip.sampling_rate for clip in clips)


def load_beside(other: Competitor, base: LatentTokenizer) -> LatentTokenizer:
    """Loads a tokenizer to compare with another one, which must have the same sampling rate."""
    tokenizer = load_tokenizer(other.path)
    if tokenizer.sampling_rate != base.sampling_rate:
        raise InputError(
            f"{other.name} works at {tokenizer.sampling_rate} Hz and the model at "
            f"{base.sampling_rate} Hz: they do not compare."
        )
    return tokenizer


def _measure_continuous(bench: Workbench) -> dict[str, Any]:
    """The quality of continuous latents, which no quantizer can exceed."""

    def compute() -> dict[str, Any]:
        held_out = bench.held_out
        with bench.bar("measure, continuous latents") as bar:
            quality = measure_audio(bench.base, held_out, None, "continuous", advance=bar.update)
        return quality[0] | {"encode_x": held_out.seconds / max(held_out.encode_seconds, 1e-9)}

    request = {"autoencoder": bench.autoencoder, "held_out": bench.held_out_identity}
    return unit(bench.out / "units" / "continuous.json", request, compute)


def _fitted_entry(
    bench: Workbench, spec: QuantizerSpec, plan: dict[int, list[int]]
) -> dict[str, Any]:
    """Fits a quantizer (or one for each rate) and measures it."""
    entry: dict[str, Any] = {"name": spec.name, "source": "fitted", "spec": spec.to_dict()}
    entry |= {"fits": [], "rates": [], "code_counts": []}
    for count, counts in plan.items():
        folder = bench.out / "units" / spec.folder
        if len(plan) > 1:
            folder = folder / f"{count}-codebooks"
        fit, measured = Trial(bench, spec, count, counts, folder).run()
        entry["fits"].append(fit)
        entry["rates"] += measured["rates"]
        entry["code_counts"] = entry["code_counts"] or measured["code_counts"]
    return entry


def _competitor_entry(bench: Workbench, other: Competitor) -> dict[str, Any]:
    """Measures a finished tokenizer on its own latents."""
    tokenizer = bench.load(Path(other.path))
    budgets = [rate / tokenizer.frame_rate for rate in bench.config.bitrates]
    sizes = tokenizer.codebook_sizes
    counts = sorted({codebooks_within(sizes, b) for b in budgets} - {0}, reverse=True)
    fingerprint, decoder = tokenizer.fingerprint, tokenizer.codes_decoder
    request = {"model": fingerprint, "held_out": bench.held_out_identity, "counts": counts}

    def compute() -> dict[str, Any]:
        held_out = HeldOut.encode(tokenizer, bench.clips)
        return bench.measure(tokenizer, held_out, counts, decoder, same_latents=False)

    path = bench.out / "units" / f"also-{fingerprint}.json"
    entry = {"name": other.name, "source": "also", "model": other.path, "fingerprint": fingerprint}
    return entry | unit(path, request, compute)
