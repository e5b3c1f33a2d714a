"""``latok demo | encode | decode | info | export | export-onnx``: audio to codes and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import (
    add_command,
    add_model,
    add_option,
    add_rate,
    add_search,
    add_strict,
    load,
    load_core,
    tty,
)
from tokenizer.errors import InputError, MissingFileError, UserError

if TYPE_CHECKING:
    from tokenizer.model.core import TokenizerCore


def _demo(options: argparse.Namespace) -> None:
    from tokenizer.evaluation.demo import run_demo

    if options.audio is not None and Path(options.audio).resolve().parent == options.out.resolve():
        raise InputError(
            f"--out {options.out} holds {options.audio}, which might be replaced: name another."
        )
    print(run_demo(load(options.model, options.device), options.audio, options.out))


PIPE = "-"


def _target(source: str, out: str | None, suffix: str) -> str:
    """Where a command writes; without OUT into a pipe from a pipe, else beside the source."""
    beside = PIPE if source == PIPE else str(Path(source).with_suffix(suffix))
    name = beside if out is None else out
    if PIPE not in (source, name) and Path(name).resolve() == Path(source).resolve():
        raise InputError(f"{name} is the file to read: name another one as OUT.")
    return name


def _split_names(names: list[str]) -> tuple[list[str], str | None]:
    """What ``AUDIO... [OUT]`` are; of two names the second is OUT unless it is there as audio."""
    from tokenizer.audio import AUDIO_SUFFIXES

    if len(names) == 2:
        second = Path(names[1])
        is_audio = second.is_file() and second.suffix.lower() in AUDIO_SUFFIXES
        if not is_audio and not (second.is_dir() and Path(names[0]).exists()):
            return names[:1], names[1]
    return names, None


def _encode_many(options: argparse.Namespace, names: list[str]) -> None:
    """Encodes files, and those in folders, each into a file beside it."""
    from tokenizer.audio import list_audio
    from tokenizer.transcoding.files import encode_file

    if PIPE in names or options.raw is not None or options.chunk_frames is not None:
        raise InputError("Standard input is encoded alone, and --raw and --chunk-frames are its.")
    files = [
        file for name in names for file in (list_audio(name) if Path(name).is_dir() else [name])
    ]
    if not files:
        raise InputError(f"No audio in {', '.join(names)}.")
    tokenizer, n = _load_for_encoding(options)
    written: dict[Path, Any] = {}
    skipped = 0
    for file in files:
        out = Path(file).with_suffix(".ltk")
        try:
            if out in written:
                raise InputError(f"{file} would replace {out}, which is {written[out]}'s.")
            shared = {"n_codebooks": n, "gain": options.gain, "downmix": options.downmix}
            _tell(out, encode_file(tokenizer, str(file), out, **shared, progress=tty()))
            written[out] = file
        except (UserError, OSError) as error:
            if options.strict:
                raise
            skipped += 1
            print(f"skipped: {error}", file=sys.stderr)
    if skipped:
        raise InputError(f"{skipped} of {len(files)} files could not be encoded.")


def _load_for_encoding(options: argparse.Namespace) -> tuple[TokenizerCore, int]:
    tokenizer = load_core(options.model, options.device, options.beam_width)
    if options.bf16:
        import torch

        tokenizer.network_dtype = torch.bfloat16
    bitrate = None if options.bitrate is None else options.bitrate * 1000
    return tokenizer, tokenizer.resolve_codebooks(options.codebooks, bitrate)


def _tell(out: Path, seconds: float) -> None:
    size = out.stat().st_size
    print(f"{out}: {size} bytes, {seconds:.2f} s, {8e-3 * size / seconds:.2f} kbit/s")


def _encode(options: argparse.Namespace) -> None:
    from tokenizer.audio import AUDIO_SUFFIXES
    from tokenizer.audio.pcm import PcmFormat
    from tokenizer.transcoding.files import encode_file
    from tokenizer.transcoding.piping import encode_live

    names, target = _split_names(options.audio)
    audio = names[0]
    if target is None and (len(names) > 1 or Path(audio).is_dir()):
        return _encode_many(options, names)
    piped = audio == PIPE
    live = piped and options.gain is not None
    if not live and (options.raw is not None or options.chunk_frames is not None):
        raise InputError("--raw and --chunk-frames are for live audio: `latok encode - --gain G`.")
    if live and options.downmix:
        raise InputError("--downmix is not for live audio.")
    if options.chunk_frames is not None and options.chunk_frames < 1:
        raise InputError(f"--chunk-frames {options.chunk_frames}: it must be at least 1.")
    name = _target(audio, target, ".ltk")
    if Path(name).suffix.lower() in AUDIO_SUFFIXES:
        raise InputError(
            f"{name} has a suffix of audio, but would become a file of codes: end OUT in .ltk."
        )
    pcm = None if options.raw is None else PcmFormat.parse(options.raw)
    tokenizer, n = _load_for_encoding(options)
    out = sys.stdout.buffer if name == PIPE else Path(name)
    shared = {"n_codebooks": n, "gain": options.gain}
    if live:
        frames = 25 if options.chunk_frames is None else options.chunk_frames
        shared |= {"pcm": pcm, "chunk_frames": frames}
        seconds = encode_live(tokenizer, sys.stdin.buffer, out, **shared)
    else:
        source = sys.stdin.buffer if piped else audio
        shared |= {"downmix": options.downmix, "progress": tty()}
        seconds = encode_file(tokenizer, source, out, **shared)
    if isinstance(out, Path):
        _tell(out, seconds)
    return None


def _decode(options: argparse.Namespace) -> None:
    from tokenizer.transcoding.files import decode_file
    from tokenizer.transcoding.piping import decode_live

    piped = options.codes == PIPE
    name = _target(options.codes, options.out, ".wav")
    if Path(name).suffix.lower() == ".ltk":
        raise InputError(
            f"{name} has the suffix of codes, but would become audio: decode one file at a time, "
            "into an OUT such as decoded.wav."
        )
    # Codes are made anew from audio, audio from codes only nearly.
    if options.out is None and name != PIPE and Path(name).exists():
        raise InputError(
            f"{name} is there already, perhaps as the original: name the file to write as OUT."
        )
    model = _bundled_model_of(options.codes) if options.model is None else options.model
    tokenizer = load_core(model, options.device)
    rate = {"n_codebooks": options.codebooks, "decoder": options.decoder}
    if piped or name == PIPE:
        codes = sys.stdin.buffer if piped else options.codes
        seconds = decode_live(tokenizer, codes, sys.stdout.buffer if name == PIPE else name, **rate)
    else:
        seconds = decode_file(tokenizer, options.codes, name, **rate, progress=tty())
    if name != PIPE:
        print(f"{name}: {seconds:.2f} s at {tokenizer.sampling_rate} Hz")


def _bundled_model_of(codes: str) -> Path | None:
    """The bundled tokenizer that made a code file, by its frames; None for a pipe, not yet read."""
    from tokenizer.codefile import CodeReader
    from tokenizer.model.loading import bundled_for

    if codes == PIPE:
        return None
    with CodeReader(codes) as reader:
        return bundled_for(reader.header.sampling_rate, reader.header.hop_length)


def describe(what: str | Path | None) -> dict[str, Any]:
    """What a code file, or a tokenizer (None: the bundled one), is; for people to read."""
    from tokenizer.codefile import read_info

    if what is not None and Path(what).is_file():
        info = read_info(what)
        h = info.header
        return {
            "file": str(what),
            "model": h.model_fingerprint,
            "duration": f"{info.seconds:.3f} s, {h.num_samples} samples at {h.sampling_rate} Hz",
            "channels": h.num_channels,
            "frames": f"{h.num_frames} at {h.sampling_rate / h.hop_length:.2f} Hz",
            "codebooks": f"{len(h.codebook_sizes)} of {sorted(set(h.codebook_sizes))} entries",
            "bitrate": f"{info.bitrate / 1000:.3f} kbit/s in {info.num_bytes} bytes",
            "range-coded chunks": f"{info.num_static_chunks} of {info.num_chunks}",
        }
    if what is not None and not Path(what).exists() and Path(what).suffix == ".ltk":
        raise MissingFileError(f"No such file: {what}.")
    from tokenizer.model.loading import load_core  # Imports torch.

    tokenizer = load_core(what)
    facts: dict[str, Any] = {
        "tokenizer": "bundled" if what is None else str(what),
        "fingerprint": tokenizer.fingerprint,
        "autoencoder": tokenizer.autoencoder.kind,
        "parameters": f"{sum(p.numel() for p in tokenizer.parameters()) / 1e6:.1f} M",
        "audio": f"{tokenizer.sampling_rate} Hz, coded {tokenizer.autoencoder.num_channels} "
        "channel(s) at a time",
        "latents": f"{tokenizer.latent_dim} dimensions at {tokenizer.frame_rate:.2f} Hz",
    }
    if tokenizer.quantizer is None:
        return facts | {"quantizer": "none yet: latok fit"}
    return facts | {
        "quantizer": tokenizer.quantizer.kind,
        "codebooks": f"{tokenizer.num_codebooks} of {sorted(set(tokenizer.codebook_sizes))} "
        "entries",
        "bitrate": f"{tokenizer.bitrate(1) / 1000:.3f} to {tokenizer.bitrate() / 1000:.3f} kbit/s",
        "decoders": "continuous" + (", finetuned" if tokenizer.finetuned_decoder else ""),
    }


def _info(options: argparse.Namespace) -> None:
    for name, value in describe(options.what).items():
        print(f"{name}: {value}")


def _export(options: argparse.Namespace) -> None:
    if Path(options.model).resolve() == options.out.resolve():
        raise InputError(
            f"{options.out} is the model, which would be rounded: name another folder."
        )
    tokenizer = load(options.model, "cpu")
    tokenizer.save_pretrained(options.out, half=True)
    print(f"{options.out}: {load_core(options.out, 'cpu').fingerprint}")


def _export_onnx(options: argparse.Namespace) -> None:
    from tokenizer.export.onnx_export import export_onnx

    tokenizer = load(options.model, "cpu")
    search = {"n_codebooks": options.codebooks, "beam_width": options.beam_width}
    folder = export_onnx(tokenizer, options.out, **search)
    for file in sorted(folder.glob("*.onnx")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


def register(commands: Any, command: str | None) -> None:  # noqa: ARG001
    """Adds the commands' parsers; none of their options needs torch."""
    p = add_command(commands, "demo", _demo, "hear a file at every rate")
    p.add_argument("audio", nargs="?", help="audio file; default: the example clip")
    text = "folder to write; default: latok-demo"
    p.add_argument("--out", type=Path, default=Path("latok-demo"), help=text)
    add_model(p)

    p = add_command(commands, "encode", _encode, "audio file to code file")
    text = (
        "audio file, - for standard input, and perhaps the code file to write (default: the same "
    )
    text += "name with .ltk, - for standard output); or several files and folders"
    p.add_argument("audio", nargs="+", help=text)
    add_strict(p)
    p.add_argument("--downmix", action="store_true", help="average the channels into one")
    text = "level (root mean square) that the audio is divided by; default: its own. With it, "
    add_option(p, "--gain", text + "standard input is encoded as it comes", type=float)
    text = "live input without WAV header, e.g. 44100:2:s16le (or s24le, s32le, f32le)"
    p.add_argument("--raw", metavar="RATE[:CHANNELS[:ENCODING]]", help=text)
    text = "live: frames that are written together; default: 25"
    add_option(p, "--chunk-frames", text, type=int)
    add_rate(p)
    add_search(p)
    text = "compute the encoder's network in bfloat16: faster where the device is, but some codes "
    p.add_argument("--bf16", action="store_true", help=text + "differ (docs/performance.md)")
    add_model(p)

    p = add_command(commands, "decode", _decode, "code file to audio file")
    p.add_argument("codes", help=".ltk file; - for standard input, decoded as it comes")
    text = "audio file to write; default: the same name with .wav; - for standard output"
    p.add_argument("out", nargs="?", help=text)
    add_option(
        p, "--codebooks", "decode only the first N codebooks; default: all in the file", type=int
    )
    text = "decoder to use; default: finetuned if there is one"
    p.add_argument("--decoder", choices=("continuous", "finetuned"), help=text)
    add_model(p)

    p = add_command(commands, "info", _info, "what a code file or a tokenizer is")
    text = ".ltk file, tokenizer folder, hub id or bundled name; default: base-44khz"
    p.add_argument("what", nargs="?", help=text)

    p = add_command(commands, "export", _export, "a tokenizer with weights in half precision")
    p.add_argument("model", help="tokenizer folder or hub id")
    p.add_argument("out", type=Path, help="folder to write")

    p = add_command(
        commands, "export-onnx", _export_onnx, "a tokenizer for onnxruntime, without torch"
    )
    p.add_argument("model", nargs="?", help="tokenizer; default: the bundled one")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--codebooks", type=int, help="codebooks to export; default: all")
    text = "hypotheses that the exported search keeps; default: the model's"
    p.add_argument("--beam-width", type=int, help=text)
