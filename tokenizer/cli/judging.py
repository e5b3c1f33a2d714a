"""``latok evaluate | compare | report``: how good tokenizers are, in figures and to the ear."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizer.cli.options import (
    add_command,
    add_device,
    add_model,
    add_option,
    add_search,
    add_strict,
    clips_of,
    load,
    tty,
)
from tokenizer.command import add_fields, in_run_folder, take

# The fields of `CropTrainingConfig` that a comparison offers; its seed is that of the comparison.
_LOOP_OPTIONS = {
    "batch_size": "crops per step",
    "crop_seconds": "length of a crop in seconds",
    "learning_rate": "peak of the learning rate",
    "warmup_steps": "steps in which the learning rate rises",
    "mixed_precision": "no, fp16 or bf16",
    "num_workers": "processes that read audio",
}


def _evaluate(options: argparse.Namespace) -> None:
    from tokenizer.evaluation.evaluate import default_conditions, evaluate, evaluation_table
    from tokenizer.evaluation.perceptual import PerceptualMetrics
    from tokenizer.saving import check_target, write_json

    if options.json:
        check_target(options.json)
    perceptual = PerceptualMetrics(options.perceptual, options.speech_clips)
    tokenizer = load(options.model, options.device, options.beam_width)
    conditions = default_conditions(tokenizer, _bits(options.bitrates))
    result = evaluate(
        tokenizer, clips_of(options.audio, options.strict), conditions, perceptual=perceptual
    )
    print(evaluation_table(result))
    if options.json:
        write_json(options.json, result)


def _compare(options: argparse.Namespace) -> int:
    from math import log2

    from tokenizer.evaluation.comparison import (
        CompareConfig,
        Competitor,
        compare,
        read_specs,
        write_summary,
    )
    from tokenizer.model.loading import load_for_fitting
    from tokenizer.training.config import CropTrainingConfig
    from tokenizer.training.quantizer import FitConfig

    specs = read_specs(options.quantizers)
    bitrates = [1000 * rate for rate in options.bitrates]
    if options.codebooks:
        per_book = load_for_fitting(options.model).frame_rate * log2(options.codebook_size)
        bitrates = [n * per_book for n in options.codebooks]
    loop = None
    if options.finetune:
        settings = {name: getattr(options, name) for name in _LOOP_OPTIONS}
        loop = CropTrainingConfig(steps=options.finetune, seed=options.seed, **settings)
    result = compare(
        options.model,
        clips_of(options.train, options.strict),
        clips_of(options.held_out, options.strict),
        specs,
        options.out,
        CompareConfig(tuple(bitrates), options.codebook_size, take(FitConfig, options), loop),
        also=[Competitor.parse(text) for text in options.also],
        device=options.device,
        progress=tty(),
    )
    print(write_summary(result, options.out))
    print(f"Figures, curves and tokenizers: {options.out}/")
    return _compare_generations(options, result) if options.generate else 0


def _compare_generations(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """`python -m generative compare` with the comparison's tokenizers."""
    arguments = [
        "-m",
        "generative",
        "compare",
        options.train,
        options.held_out,
        "--out",
        options.out / "generate",
    ]
    arguments += ["--minutes", options.generate, "--device", options.device]
    arguments += ["--seed", options.seed, "--bitrate", 1000 * max(options.bitrates)]
    for entry in result["entries"]:
        if entry["source"] == "also":
            path = entry["model"]
        else:
            fit = entry["fits"][0]
            path = options.out / fit.get("finetuned_model", fit["model"])
        arguments += ["--tokenizer", f"{entry['name']}={path}"]
    # A process of its own: nothing of this package needs generative models.
    return subprocess.run([sys.executable, *map(str, arguments)], check=False).returncode


def _report(options: argparse.Namespace) -> None:
    from tokenizer.evaluation.comparison import Competitor
    from tokenizer.evaluation.report import ReportConfig, build_report

    config = ReportConfig(
        bitrates=_bits(options.bitrates),
        focus=None if options.focus is None else 1000 * options.focus,
        seconds=options.seconds,
        title=options.title,
    )
    report = build_report(
        options.model,
        clips_of(options.audio, options.strict),
        options.out,
        config,
        comparison=options.compare,
        end_to_end_models=[Competitor.parse(text) for text in options.e2e],
        device=options.device,
        progress=tty(),
    )
    titles = ", ".join(table["title"].lower() for table in report["tables"])
    print(f"{options.out / 'index.html'}: {report['bytes'] / 1e6:.1f} MB; tables {titles}")


def _bits(rates: list[float] | None) -> tuple[float, ...] | None:
    """Bit/s of rates in kbit/s."""
    return None if rates is None else tuple(1000 * rate for rate in rates)


def register(commands: Any, command: str | None) -> None:
    """Adds the commands' parsers; options that need torch only to the ``command`` that runs."""
    p = add_command(
        commands,
        "evaluate",
        _evaluate,
        "quality, rate and speed over a folder",
        description="Measures a tokenizer on a folder of audio: continuous latents, and codes at "
        "each rate. SI-SDR, in dB: higher is better. Mel, STFT and log-spectral distance (LSD) and "
        "buzz (how much the sound repeats at the frame rate above 5 kHz; its excess over the "
        "original): lower is better.",
    )
    p.add_argument("audio", metavar="AUDIO", help="file, folder or dataset to measure on")
    add_strict(p)
    _add_bitrates(p, None)
    p.add_argument(
        "--perceptual",
        nargs="+",
        default=[],
        choices=("visqol", "zimtohrli", "pesq", "stoi"),
        help="also measure these, with the extra latent-tokenizer[perceptual]; default: none",
    )
    text = "measure PESQ and STOI only where the path matches, e.g. '*speech*'; default: all"
    p.add_argument("--speech-clips", default="*", metavar="PATTERN", help=text)
    p.add_argument("--json", type=Path, metavar="FILE", help="file for the figures of each clip")
    add_search(p)
    add_model(p)

    p = add_command(
        commands,
        "compare",
        in_run_folder(_compare),
        "many quantizers on one representation",
        description="Fits quantizers to the latents of one autoencoder, and measures all of them "
        "at the same rates on other audio.",
    )
    p.add_argument("model", help="tokenizer, or an autoencoder of transformers or diffusers")
    p.add_argument("train", metavar="AUDIO_TRAIN", help="folder of audio to fit to")
    add_strict(p)
    p.add_argument("held_out", metavar="AUDIO_EVAL", help="folder of audio to measure on")
    p.add_argument("--out", type=Path, required=True, help="folder; a run in it is resumed")
    p.add_argument(
        "--quantizers",
        nargs="+",
        metavar="SPEC",
        default=["rvq", "rvq:standardization=channel", "rvq:standardization=decoder"],
        help="KIND[:OPTION=VALUE,...], e.g. rvq:standardization=channel,beam_width=4, or a JSON or "
        "TOML file of them; default: rvq with each standardization",
    )
    rate = p.add_mutually_exclusive_group()
    _add_bitrates(rate, [24, 16, 10, 3])
    text = "numbers of codebooks, instead of --bitrates"
    add_option(rate, "--codebooks", text, type=int, nargs="+")
    add_option(p, "--codebook-size", "entries of each codebook", 1024)
    text = "also finetune a decoder for each quantizer, so many steps"
    add_option(p, "--finetune", text, 0, metavar="STEPS")
    text = "also train generative models on each, so many minutes, and compare what they generate; "
    text += "see python -m generative compare; default: not"
    p.add_argument("--generate", type=float, metavar="MINUTES", help=text)
    _add_checkpoints(p, "--also", "tokenizers to measure beside them, e.g. some trained end to end")
    add_device(p)
    if command == "compare":
        from tokenizer.training.config import CropTrainingConfig
        from tokenizer.training.quantizer import FitConfig

        add_fields(p, FitConfig, title="latents")
        group = p.add_argument_group("finetuning, with --finetune")
        defaults = CropTrainingConfig(steps=1, learning_rate=4e-4)
        for name, text in _LOOP_OPTIONS.items():
            default = getattr(defaults, name)
            kind = {"type": int} if default is None else {}
            add_option(group, "--" + name.replace("_", "-"), text, default, **kind)

    p = add_command(
        commands,
        "report",
        _report,
        "a page to listen to, from a folder of audio",
        description="Writes a page of players, spectrograms and figures, which opens from disk.",
    )
    p.add_argument("audio", metavar="FOLDER", help="audio to listen to")
    add_strict(p)
    text = "folder of the page; an earlier page is replaced"
    p.add_argument("--out", type=Path, required=True, help=text)
    text = "a folder of `latok compare`, for more tables; default: none"
    add_option(p, "--compare", text, type=Path, metavar="DIR")
    _add_checkpoints(p, "--e2e", "tokenizers trained end to end, for a table beside them")
    _add_bitrates(p, None)
    text = "rate of all tables but the first, in kbit/s and channel; default: 16, or the lowest"
    add_option(p, "--focus", text, type=float, metavar="KBPS")
    add_option(p, "--seconds", "cut longer clips to this length in seconds", 10, type=float)
    add_option(p, "--title", "title of the page", "Latent Tokenizer: listening page")
    add_model(p)


def _add_checkpoints(parser: Any, name: str, text: str) -> None:
    text, metavar = f"{text}; default: none", "[NAME=]CHECKPOINT"
    parser.add_argument(name, nargs="+", default=[], metavar=metavar, help=text)


def _add_bitrates(parser: Any, default: list[float | int] | None) -> None:
    ending = ", or what the model has of them" if default is None else ""
    parser.add_argument(
        "--bitrates",
        type=float,
        nargs="+",
        default=default,
        metavar="KBPS",
        help=f"rates in kbit/s and channel; default: 24 16 10 3{ending}",
    )
