"""``latok evaluate | compare | report``: how good tokenizers are, in figures and to the ear."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizer.cli.options import add_device, add_fields, add_model, add_search, load, take, tty
from tokenizer.errors import ExistingFileError, InputError, MissingFileError

# What of `LoopConfig` a comparison offers; the seed is that of everything else.
_LOOP_OPTIONS = (
    "batch_size",
    "crop_seconds",
    "learning_rate",
    "warmup_steps",
    "mixed_precision",
    "num_workers",
)


def _evaluate(options: argparse.Namespace) -> None:
    from tokenizer.evaluation.evaluate import default_conditions, evaluate, evaluation_table
    from tokenizer.evaluation.perceptual import PerceptualMetrics
    from tokenizer.training.data import scan

    _check_folder(options.json)
    perceptual = PerceptualMetrics(options.perceptual, options.speech_clips)
    tokenizer = load(options.model, options.device, options.beam_width)
    conditions = default_conditions(tokenizer, [1000 * rate for rate in options.bitrates])
    result = evaluate(tokenizer, scan(options.audio), conditions, perceptual=perceptual)
    print(evaluation_table(result))
    if options.json:
        temporary = options.json.with_name(options.json.name + ".partial")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(options.json)


def _check_folder(file: Path | None) -> None:
    """Refuses a file to write before hours of work rather than after them."""
    if file is not None and not file.parent.is_dir():
        raise MissingFileError(f"Cannot write {file}: make the folder {file.parent} first.")
    if file is not None and file.is_dir():
        raise InputError(f"Cannot write {file}: it is a folder. Name a file in it.")


def _compare(options: argparse.Namespace) -> None:
    from math import log2

    from tokenizer.evaluation.comparison import (
        CompareConfig,
        Competitor,
        compare,
        read_specs,
        write_summary,
    )
    from tokenizer.model.loading import load_for_fitting
    from tokenizer.training.data import scan
    from tokenizer.training.loop import LoopConfig
    from tokenizer.training.quantizer import FitConfig

    if options.out.exists() and not options.out.is_dir():
        raise ExistingFileError(f"{options.out} is a file: name a folder with --out.")
    specs = read_specs(options.quantizers)
    bitrates = [1000 * rate for rate in options.bitrates or (24, 16, 10, 3)]
    if options.codebooks:
        per_book = load_for_fitting(options.model).frame_rate * log2(options.codebook_size)
        bitrates = [n * per_book for n in options.codebooks]
    loop = None
    if options.finetune:
        chosen = {name: getattr(options, name) for name in _LOOP_OPTIONS}
        loop = LoopConfig(steps=options.finetune, seed=options.seed, **chosen)
    result = compare(
        options.model,
        scan(options.train),
        scan(options.held_out),
        specs,
        options.out,
        CompareConfig(tuple(bitrates), options.codebook_size, take(FitConfig, options), loop),
        also=[Competitor.parse(text) for text in options.also],
        device=options.device,
        progress=tty(),
    )
    print(write_summary(result, options.out))
    print(f"Figures, curves and tokenizers: {options.out}/")


def _report(options: argparse.Namespace) -> None:
    from tokenizer.evaluation.comparison import Competitor
    from tokenizer.evaluation.report import ReportConfig, build_report
    from tokenizer.training.data import scan

    config = ReportConfig(
        bitrates=tuple(1000 * rate for rate in options.bitrates),
        focus=1000 * options.focus,
        seconds=options.seconds,
        title=options.title,
    )
    found = build_report(
        options.model,
        scan(options.audio),
        options.out,
        config,
        comparison=options.compare,
        end_to_end_models=[Competitor.parse(text) for text in options.e2e],
        device=options.device,
        progress=tty(),
    )
    titles = ", ".join(table["title"].lower() for table in found["tables"])
    print(f"{options.out / 'index.html'}: {found['bytes'] / 1e6:.1f} MB; tables {titles}")


def register(commands: Any, command: str | None) -> None:
    """Adds the commands' parsers; options that need torch only to the ``command`` asked for."""
    p = commands.add_parser("evaluate", help="quality, rate and speed over a folder")
    p.set_defaults(run=_evaluate)
    p.add_argument("audio", help="folder of audio")
    p.add_argument("--bitrates", type=float, nargs="+", default=[24, 16, 10, 3], help="kbit/s")
    p.add_argument(
        "--perceptual",
        nargs="+",
        default=[],
        choices=("visqol", "zimtohrli", "pesq", "stoi"),
        help="also these metrics, of the extra latent-tokenizer[perceptual]",
    )
    p.add_argument(
        "--speech-clips", default="*", metavar="PATTERN", help="PESQ and STOI for these paths only"
    )
    p.add_argument("--json", type=Path, help="also write everything, clip by clip")
    add_search(p)
    add_model(p)

    p = commands.add_parser("compare", help="many quantizers on one representation")
    p.set_defaults(run=_compare)
    p.add_argument("model", help="tokenizer, or a DAC, EnCodec or Oobleck checkpoint")
    p.add_argument("train", metavar="AUDIO_TRAIN", help="audio to fit to")
    p.add_argument("held_out", metavar="AUDIO_EVAL", help="audio to measure on")
    p.add_argument("--out", type=Path, required=True, help="folder; resumes if it exists")
    p.add_argument(
        "--quantizers",
        nargs="+",
        metavar="SPEC",
        default=["rvq", "rvq:standardization=channel", "rvq:standardization=decoder"],
        help="KIND[:OPTION=VALUE,...], e.g. rvq:standardization=channel,beam_width=4, or a JSON or "
        "TOML file of them",
    )
    rate = p.add_mutually_exclusive_group()
    rate.add_argument("--bitrates", type=float, nargs="+", help="kbit/s; default: 24 16 10 3")
    rate.add_argument(
        "--codebooks", type=int, nargs="+", help="the rates of so many codebooks instead"
    )
    p.add_argument("--codebook-size", type=int, default=1024, help="default: 1024")
    p.add_argument(
        "--finetune", type=int, default=0, metavar="STEPS", help="also finetune each decoder"
    )
    p.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="[NAME=]CHECKPOINT",
        help="tokenizers to measure beside them, e.g. some trained end to end",
    )
    add_device(p)
    if command == "compare":
        from tokenizer.training.loop import LoopConfig
        from tokenizer.training.quantizer import FitConfig

        add_fields(p, FitConfig)
        group = p.add_argument_group("finetuning, with --finetune")
        defaults = LoopConfig(steps=1, learning_rate=4e-4)
        for name in _LOOP_OPTIONS:
            value = getattr(defaults, name)
            option = "--" + name.replace("_", "-")
            group.add_argument(option, type=type(value), default=value, help=f"default: {value}")

    p = commands.add_parser("report", help="a page to listen to, from a folder of audio")
    p.set_defaults(run=_report)
    p.add_argument("audio", metavar="FOLDER", help="what to listen to")
    p.add_argument("--out", type=Path, required=True, help="folder of the page")
    p.add_argument(
        "--compare", type=Path, metavar="DIR", help="a folder of `latok compare`: more tables"
    )
    p.add_argument(
        "--e2e",
        nargs="+",
        default=[],
        metavar="[NAME=]CHECKPOINT",
        help="tokenizers trained end to end",
    )
    p.add_argument("--bitrates", type=float, nargs="+", default=[24, 16, 10, 3], help="kbit/s")
    p.add_argument("--focus", type=float, default=16, help="kbit/s of all tables but the first")
    p.add_argument("--seconds", type=float, default=10, help="longer clips are cut; default: 10")
    p.add_argument("--title", default="Latent Tokenizer: listening page")
    add_model(p)
