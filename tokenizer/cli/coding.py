"""``latok demo | encode | decode | info | export``: audio to codes and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenizer.cli.options import add_model, add_rate, load, tty


def _demo(options: argparse.Namespace) -> None:
    from tokenizer.demo import run_demo

    print(run_demo(load(options.model, options.device), options.audio, options.out))


def _encode(options: argparse.Namespace) -> None:
    from tokenizer.transcode import encode_file

    tokenizer = load(options.model, options.device)
    bitrate = None if options.bitrate is None else options.bitrate * 1000
    n = tokenizer.resolve_codebooks(options.codebooks, bitrate)
    out = options.out or Path(options.audio).with_suffix(".ltk")
    seconds = encode_file(
        tokenizer, options.audio, out, n_codebooks=n, downmix=options.downmix, progress=tty()
    )
    size = Path(out).stat().st_size
    print(f"{out}: {size} bytes, {seconds:.2f} s, {8e-3 * size / seconds:.2f} kbit/s")


def _decode(options: argparse.Namespace) -> None:
    from tokenizer.transcode import decode_file

    tokenizer = load(options.model, options.device)
    out = options.out or Path(options.codes).with_suffix(".wav")
    seconds = decode_file(
        tokenizer,
        options.codes,
        out,
        n_codebooks=options.codebooks,
        decoder=options.decoder,
        progress=tty(),
    )
    print(f"{out}: {seconds:.2f} s at {tokenizer.sampling_rate} Hz")


def _info(options: argparse.Namespace) -> None:
    from tokenizer.transcode import describe

    for name, value in describe(options.what).items():
        print(f"{name}: {value}")


def _export(options: argparse.Namespace) -> None:
    tokenizer = load(options.model, "cpu")
    tokenizer.save_pretrained(options.out, half=True)
    print(f"{options.out}: {load(options.out, 'cpu').fingerprint}")


def register(commands: Any, command: str | None) -> None:  # noqa: ARG001
    """Adds the commands' parsers; none of their options needs torch."""
    p = commands.add_parser("demo", help="hear a file at every rate")
    p.set_defaults(run=_demo)
    p.add_argument("audio", nargs="?", help="audio file; default: the example clip")
    p.add_argument("--out", type=Path, default=Path("latok-demo"), help="default: latok-demo")
    add_model(p)

    p = commands.add_parser("encode", help="audio file to code file")
    p.set_defaults(run=_encode)
    p.add_argument("audio", help="audio file")
    p.add_argument("out", nargs="?", type=Path, help="default: the same name with .ltk")
    p.add_argument("--downmix", action="store_true", help="average the channels into one")
    add_rate(p)
    add_model(p)

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
    add_model(p)

    p = commands.add_parser("info", help="what a code file or a tokenizer is")
    p.set_defaults(run=_info)
    p.add_argument(
        "what", nargs="?", help=".ltk file, tokenizer folder or hub id; default: the bundled model"
    )

    p = commands.add_parser("export", help="a tokenizer with weights in half precision")
    p.set_defaults(run=_export)
    p.add_argument("model", help="tokenizer")
    p.add_argument("out", type=Path, help="folder to write")
