"""``latok``: the command line of the tokenizer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizer._clash import check_clash

if TYPE_CHECKING:
    from tokenizer.model import LatentTokenizer

Config = TypeVar("Config")

# Sizes of the bundled family: "base" is the shipped model, "tiny" is for trying things out.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "sampling_rate": 44_100,
        "hop_length": 441,
        "latent_dim": 96,
        "encoder_width": 256,
        "encoder_depth": 5,
        "decoder_width": 320,
        "decoder_depth": 7,
    },
    "tiny": {
        "sampling_rate": 16_000,
        "hop_length": 160,
        "latent_dim": 32,
        "encoder_width": 48,
        "encoder_depth": 2,
        "decoder_width": 64,
        "decoder_depth": 2,
    },
}


def _add_fields(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Adds an option for every field of a dataclass; ``defaults`` replace the dataclass' own."""
    group = parser.add_argument_group(config.__name__)
    for field in fields(config):
        default = defaults.get(field.name, None if field.default is MISSING else field.default)
        name = "--" + field.name.replace("_", "-")
        if isinstance(default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            kind = type(default[0])
            group.add_argument(name, nargs=len(default), type=kind, default=default)
        else:
            kind = type(default) if default is not None else int
            group.add_argument(name, type=kind, default=default, help=f"default: {default}")


def _take(config: type[Config], options: argparse.Namespace) -> Config:
    """Builds a dataclass from the options that `_add_fields` added."""
    values = {f.name: getattr(options, f.name) for f in fields(config)}  # pyright: ignore[reportArgumentType]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _load(name: str | Path | None, device: str) -> LatentTokenizer:
    from tokenizer.loading import load_tokenizer

    return load_tokenizer(name).to(device)  # pyright: ignore[reportArgumentType]


def _tty() -> bool:
    return sys.stderr.isatty()


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="tokenizer folder or hub id; default: the bundled one")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="torch device; default: cpu")


def _add_rate(parser: argparse.ArgumentParser) -> None:
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--codebooks", type=int, help="number of codebooks; default: all")
    rate.add_argument("--bitrate", type=float, help="kbit/s and channel, instead of --codebooks")


def _encode(options: argparse.Namespace) -> None:
    from tokenizer.transcode import encode_file

    tokenizer = _load(options.model, options.device)
    bitrate = None if options.bitrate is None else options.bitrate * 1000
    n = tokenizer.resolve_codebooks(options.codebooks, bitrate)
    out = options.out or Path(options.audio).with_suffix(".ltk")
    seconds = encode_file(
        tokenizer, options.audio, out, n_codebooks=n, downmix=options.downmix, progress=_tty()
    )
    size = Path(out).stat().st_size
    print(f"{out}: {size} bytes, {seconds:.2f} s, {8e-3 * size / seconds:.2f} kbit/s")


def _decode(options: argparse.Namespace) -> None:
    from tokenizer.transcode import decode_file

    tokenizer = _load(options.model, options.device)
    out = options.out or Path(options.codes).with_suffix(".wav")
    seconds = decode_file(
        tokenizer,
        options.codes,
        out,
        n_codebooks=options.codebooks,
        decoder=options.decoder,
        progress=_tty(),
    )
    print(f"{out}: {seconds:.2f} s at {tokenizer.sampling_rate} Hz")


def _info(options: argparse.Namespace) -> None:
    from tokenizer.transcode import describe

    for name, value in describe(options.what).items():
        print(f"{name}: {value}")


def _export(options: argparse.Namespace) -> None:
    tokenizer = _load(options.model, "cpu")
    tokenizer.save_pretrained(options.out, half=True)
    print(f"{options.out}: {_load(options.out, 'cpu').fingerprint}")


def _evaluate(options: argparse.Namespace) -> None:
    from tokenizer.data import scan
    from tokenizer.evaluation import default_conditions, evaluate, evaluation_table

    tokenizer = _load(options.model, options.device)
    conditions = default_conditions(tokenizer, [1000 * rate for rate in options.bitrates])
    result = evaluate(tokenizer, scan(options.audio), conditions)
    print(evaluation_table(result))
    if options.json:
        temporary = options.json.with_name(options.json.name + ".partial")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(options.json)


def _demo(options: argparse.Namespace) -> None:
    from tokenizer.demo import run_demo

    print(run_demo(_load(options.model, options.device), options.audio, options.out))


def _train(options: argparse.Namespace) -> None:
    import torch

    from tokenizer.autoencoders.lapped import LappedAutoencoder, LappedConfig
    from tokenizer.data import Augmentation, scan
    from tokenizer.model import LatentTokenizer
    from tokenizer.training.autoencoder import ReconstructionConfig, train_autoencoder
    from tokenizer.training.loop import LoopConfig

    loop = _take(LoopConfig, options)
    sizes = PRESETS[options.preset] | {
        f.name: getattr(options, f.name)
        for f in fields(LappedConfig)
        if getattr(options, f.name) is not None
    }
    torch.manual_seed(loop.seed)
    autoencoder = LappedAutoencoder(LappedConfig(**sizes))
    train_autoencoder(
        autoencoder,
        scan(options.audio),
        options.out,
        loop=loop,
        losses=_take(ReconstructionConfig, options),
        augmentation=_take(Augmentation, options),
        num_held_out=options.held_out,
    )
    LatentTokenizer.from_autoencoder(autoencoder).save_pretrained(options.out / "model")
    print(f"Model (not yet quantized): {options.out / 'model'}")


def _fit(options: argparse.Namespace) -> None:
    from tokenizer.data import scan
    from tokenizer.loading import load_for_fitting
    from tokenizer.quantizers.residual import ResidualVectorQuantizer
    from tokenizer.training.quantizer import FitConfig, fit_quantizer

    tokenizer = load_for_fitting(options.model).to(options.device)
    quantizer = ResidualVectorQuantizer(
        tokenizer.latent_dim,
        options.codebooks,
        options.codebook_size,
        standardization=options.standardization,
        beam_width=options.beam_width,
        max_points=options.max_points,
        iterations=options.iterations,
    )
    fit_quantizer(
        tokenizer,
        scan(options.audio),
        quantizer,
        cache=options.out / "latents.npy",
        config=_take(FitConfig, options),
    )
    print(quantizer.report.table())
    tokenizer.save_pretrained(options.out / "model")
    print(f"Tokenizer: {options.out / 'model'}")


def _finetune(options: argparse.Namespace) -> None:
    from tokenizer.data import Augmentation, scan
    from tokenizer.loading import load_tokenizer
    from tokenizer.training.autoencoder import ReconstructionConfig
    from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
    from tokenizer.training.loop import LoopConfig

    tokenizer = load_tokenizer(options.model)
    finetune_decoder(
        tokenizer,
        scan(options.audio),
        options.out,
        loop=_take(LoopConfig, options),
        losses=_take(ReconstructionConfig, options),
        finetune=_take(FinetuneConfig, options),
        augmentation=_take(Augmentation, options),
        num_held_out=options.held_out,
    )
    tokenizer.save_pretrained(options.out / "model")
    print(f"Tokenizer: {options.out / 'model'}")


def _training_options(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    from tokenizer.data import Augmentation
    from tokenizer.training.autoencoder import ReconstructionConfig
    from tokenizer.training.loop import LoopConfig

    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; resumes if it exists"
    )
    parser.add_argument("--held-out", type=int, default=16, help="clips kept for validation")
    _add_fields(parser, LoopConfig, steps=6000, learning_rate=learning_rate)
    _add_fields(parser, ReconstructionConfig)
    _add_fields(parser, Augmentation)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Builds the parser; a training command's options only for it, as they import torch."""
    parser = argparse.ArgumentParser(
        prog="latok", description="Audio to continuous latents and discrete codes, and back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = commands.add_parser("demo", help="hear a file at every rate")
    p.set_defaults(run=_demo)
    p.add_argument("audio", nargs="?", help="audio file; default: the example clip")
    p.add_argument("--out", type=Path, default=Path("latok-demo"), help="default: latok-demo")
    _add_model(p)

    p = commands.add_parser("encode", help="audio file to code file")
    p.set_defaults(run=_encode)
    p.add_argument("audio", help="audio file")
    p.add_argument("out", nargs="?", type=Path, help="default: the same name with .ltk")
    p.add_argument("--downmix", action="store_true", help="average the channels into one")
    _add_rate(p)
    _add_model(p)

    p = commands.add_parser("decode", help="code file to audio file")
    p.set_defaults(run=_decode)
    p.add_argument("codes", help=".ltk file")
    p.add_argument("out", nargs="?", type=Path, help="default: the same name with .wav")
    p.add_argument(
        "--codebooks", type=int, help="use only the first ones; default: all in the file"
    )
    p.add_argument(
        "--decoder", choices=("continuous", "finetuned"), help="default: finetuned if there is one"
    )
    _add_model(p)

    p = commands.add_parser("info", help="what a code file or a tokenizer is")
    p.set_defaults(run=_info)
    p.add_argument(
        "what", nargs="?", help=".ltk file, tokenizer folder or hub id; default: the bundled model"
    )

    p = commands.add_parser("export", help="a tokenizer with weights in half precision")
    p.set_defaults(run=_export)
    p.add_argument("model", help="tokenizer")
    p.add_argument("out", type=Path, help="folder to write")

    p = commands.add_parser("evaluate", help="quality, rate and speed over a folder")
    p.set_defaults(run=_evaluate)
    p.add_argument("audio", help="folder of audio")
    p.add_argument("--bitrates", type=float, nargs="+", default=[24, 16, 10, 3], help="kbit/s")
    p.add_argument("--json", type=Path, help="also write everything, clip by clip")
    _add_model(p)

    p = commands.add_parser("train", help="stage 1: train an autoencoder")
    p.set_defaults(run=_train)
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "train":
        from tokenizer.autoencoders.lapped import LappedConfig

        p.add_argument("--preset", choices=sorted(PRESETS), default="base", help="default: base")
        group = p.add_argument_group("sizes (default: the preset's)")
        for field in fields(LappedConfig):
            name = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                group.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
            else:
                group.add_argument(name, type=int)
        _training_options(p, learning_rate=1e-3)

    p = commands.add_parser("fit", help="stage 2: fit a quantizer to the latents")
    p.set_defaults(run=_fit)
    p.add_argument("model", help="tokenizer, or a DAC, EnCodec or Oobleck checkpoint")
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "fit":
        from tokenizer.training.quantizer import FitConfig

        p.add_argument("--out", type=Path, required=True)
        p.add_argument("--codebooks", type=int, default=24, help="default: 24")
        p.add_argument("--codebook-size", type=int, default=1024, help="default: 1024")
        p.add_argument(
            "--standardization",
            default="none",
            choices=("none", "scalar", "channel", "whiten", "decoder"),
        )
        p.add_argument("--beam-width", type=int, default=1, help="default: 1 (greedy)")
        p.add_argument("--max-points", type=int, default=200_000, help="latents held in memory")
        p.add_argument("--iterations", type=int, default=12, help="of k-means, per stage")
        _add_device(p)
        _add_fields(p, FitConfig)

    p = commands.add_parser("finetune", help="stage 3: finetune a decoder on quantized latents")
    p.set_defaults(run=_finetune)
    p.add_argument("model", help="fitted tokenizer")
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "finetune":
        from tokenizer.training.decoder import FinetuneConfig

        _training_options(p, learning_rate=4e-4)
        _add_fields(p, FinetuneConfig)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 2 after printing one line about bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(given[0] if given else None).parse_args(given)
    try:
        # Here too: when another `tokenizer` overwrote our __init__.py, only this file is left to
        # explain it.
        check_clash()
        options.run(options)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"latok: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("latok: interrupted", file=sys.stderr)
        return 130
    return 0
