"""``latok train | fit | finetune``: the three stages."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import add_config, add_device
from tokenizer.command import add_fields, field_help, first_sentence, take
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.latent_tokenizer import LatentTokenizer

# Sizes of the bundled family: "base" is the shipped model, "tiny" is for trying things out.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "sampling_rate": 44_100,
        "hop_length": 441,
        "latent_dim": 112,
        "envelope_dim": 16,
        "encoder_width": 256,
        "encoder_depth": 5,
        "decoder_width": 320,
        "decoder_depth": 7,
    },
    "tiny": {
        "sampling_rate": 16_000,
        "hop_length": 160,
        "latent_dim": 32,
        "envelope_dim": 4,
        "encoder_width": 48,
        "encoder_depth": 2,
        "decoder_width": 64,
        "decoder_depth": 2,
    },
}

# Options of many quantizers that `latok fit` also takes by themselves.
_SHORTHANDS = ("standardization", "beam_width", "max_points", "iterations")


def _train(options: argparse.Namespace) -> None:
    import torch

    from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
    from tokenizer.model.latent_tokenizer import LatentTokenizer
    from tokenizer.model.loading import load_for_fitting, load_tokenizer
    from tokenizer.training.adversarial import AdversarialConfig
    from tokenizer.training.augmentation import Augmentation
    from tokenizer.training.autoencoder import mix_weights, train_autoencoder
    from tokenizer.training.clips import scan
    from tokenizer.training.config import CropTrainingConfig
    from tokenizer.training.reconstruction import ReconstructionConfig

    loop = take(CropTrainingConfig, options)
    sizes = PRESETS[options.preset] | {
        f.name: getattr(options, f.name)
        for f in fields(LappedConfig)
        if getattr(options, f.name) is not None
    }
    torch.manual_seed(loop.seed)
    autoencoder = LappedAutoencoder(LappedConfig(**sizes))
    if not 0 <= options.init_share < 1:
        raise InputError(f"--init-share is a share below 1, got {options.init_share:g}.")
    if options.init_share and not options.init:
        raise InputError("--init-share needs --init, the model whose share it is.")
    if options.init_quantizer and options.bottleneck is None:
        raise InputError("--init-quantizer needs --bottleneck, which begins with it.")
    start = load_for_fitting(options.init).autoencoder.state_dict() if options.init else {}
    if options.init:
        autoencoder.load_state_dict(start)
    settings: dict[str, Any] = {
        "loop": loop,
        "losses": take(ReconstructionConfig, options),
        "augmentation": take(Augmentation, options),
        "adversarial": take(AdversarialConfig, options),
        "pretrained": options.init is not None,
        "num_held_out": options.held_out,
    }
    if options.bottleneck is None:
        train_autoencoder(autoencoder, scan(options.audio), options.out, **settings)
        if options.init_share:
            mix_weights(autoencoder, start, options.init_share)
        _deliver(LatentTokenizer.from_autoencoder(autoencoder), options.out)
        return

    from tokenizer.training.bottlenecks import BottleneckConfig
    from tokenizer.training.end_to_end import train_end_to_end

    settings |= {"kind": options.bottleneck, "config": take(BottleneckConfig, options)}
    if options.init_quantizer:
        settings["start"] = load_tokenizer(options.init_quantizer).quantizer
        if settings["start"] is None:
            raise InputError(f"{options.init_quantizer} has no quantizer to begin from.")
    tokenizer = train_end_to_end(autoencoder, scan(options.audio), options.out, **settings)
    if options.init_share:
        mix_weights(autoencoder, start, options.init_share)
        # The quantizer was trained with other latents.
        tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    _deliver(tokenizer, options.out, report=True)


def _fit(options: argparse.Namespace) -> None:
    from tokenizer.devices import device_of
    from tokenizer.evaluation.comparison.specs import QuantizerSpec, parse_spec
    from tokenizer.model.loading import load_for_fitting
    from tokenizer.training.clips import scan
    from tokenizer.training.quantizer import FitConfig, fit_quantizer

    spec = parse_spec(options.quantizer)
    shorthands = {name: getattr(options, name) for name in _SHORTHANDS}
    shorthands = {name: value for name, value in shorthands.items() if value is not None}
    spec = QuantizerSpec(spec.kind, {**shorthands, **spec.options})
    device = device_of(options.device)
    tokenizer = load_for_fitting(options.model).to(device)  # pyright: ignore[reportArgumentType]
    quantizer = spec.build(
        tokenizer.coded_dim, num_codebooks=options.codebooks, codebook_size=options.codebook_size
    )
    fit_quantizer(
        tokenizer,
        scan(options.audio),
        quantizer,
        cache=options.out / "latents.npy",
        config=take(FitConfig, options),
        checkpoint=options.out / "quantizer.safetensors",
    )
    _deliver(tokenizer, options.out, report=True)


def _finetune(options: argparse.Namespace) -> None:
    from tokenizer.model.loading import load_tokenizer
    from tokenizer.training.adversarial import AdversarialConfig
    from tokenizer.training.augmentation import Augmentation
    from tokenizer.training.clips import scan
    from tokenizer.training.config import CropTrainingConfig
    from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
    from tokenizer.training.detail import add_detail
    from tokenizer.training.reconstruction import ReconstructionConfig

    tokenizer, clips = load_tokenizer(options.model), scan(options.audio)
    loop, finetune = take(CropTrainingConfig, options), take(FinetuneConfig, options)
    if options.detail_dim:
        if finetune.decoder != "continuous":
            raise InputError("--detail-dim needs --decoder continuous, which has to learn it.")
        tokenizer = add_detail(tokenizer, clips, options.detail_dim, seed=loop.seed)
    finetune_decoder(
        tokenizer,
        clips,
        options.out,
        loop=loop,
        losses=take(ReconstructionConfig, options),
        finetune=finetune,
        augmentation=take(Augmentation, options),
        adversarial=take(AdversarialConfig, options),
        num_held_out=options.held_out,
    )
    _deliver(tokenizer, options.out)


def _deliver(tokenizer: LatentTokenizer, out: Path, *, report: bool = False) -> None:
    """Saves what all processes have, once."""
    from tokenizer.training.processes import is_main_process

    if not is_main_process():
        return
    if report and tokenizer.quantizer is not None:
        print(tokenizer.quantizer.report.table())
    tokenizer.save_pretrained(out / "model")
    what = "Model (not yet quantized)" if tokenizer.quantizer is None else "Tokenizer"
    print(f"{what}: {out / 'model'}")


# What `--help` shows of each group of settings; all are in docs/howto/train.md.
_SHOWN = {
    "CropTrainingConfig": (
        "steps",
        "batch_size",
        "crop_seconds",
        "learning_rate",
        "mixed_precision",
        "num_workers",
        "seed",
    ),
    "ReconstructionConfig": ("mel_weight", "waveform_weight", "energy_weight", "noise_range"),
    "AdversarialConfig": ("adversarial_weight", "feature_weight"),
    "Augmentation": (),
    "BottleneckConfig": ("codebooks", "codebook_size"),
    "LappedConfig": ("sampling_rate", "hop_length", "latent_dim"),
}


def _add(parser: argparse.ArgumentParser, config: type, title: str, **defaults: Any) -> None:
    add_fields(parser, config, title=title, shown=_SHOWN[config.__name__], **defaults)


def _command(commands: Any, name: str, text: str, model: str | None = None) -> Any:
    """A command on audio, with the options that all three have."""
    words = "AUDIO" if model is None else "MODEL AUDIO"
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        usage=f"latok {name} {words} --out FOLDER [options]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=100),
    )
    if model is not None:
        parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument(
        "audio", metavar="AUDIO", help="folder of audio, saved dataset, or dataset:NAME"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of the run; an earlier run in it is resumed",
    )
    add_config(parser)
    return parser


def _add_training(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    from tokenizer.training.adversarial import AdversarialConfig
    from tokenizer.training.augmentation import Augmentation
    from tokenizer.training.config import CropTrainingConfig
    from tokenizer.training.reconstruction import ReconstructionConfig

    parser.add_argument(
        "--held-out",
        type=int,
        default=16,
        metavar="N",
        help="clips kept for validation; default: 16",
    )
    _add(parser, CropTrainingConfig, "training", steps=6000, learning_rate=learning_rate)
    _add(parser, ReconstructionConfig, "losses")
    _add(parser, AdversarialConfig, "discriminators")
    _add(parser, Augmentation, "augmentation of the crops")


def register(commands: Any, command: str | None) -> None:
    """Adds the commands' parsers; options that need torch only to the ``command`` asked for."""
    parser = _command(commands, "train", "stage 1: train an autoencoder")
    parser.set_defaults(run=_train)
    if command == "train":
        _train_options(parser)
    parser = _command(
        commands,
        "fit",
        "stage 2: fit a quantizer to the latents",
        "tokenizer, or a DAC, EnCodec or Oobleck checkpoint",
    )
    parser.set_defaults(run=_fit)
    if command == "fit":
        _fit_options(parser)
    parser = _command(
        commands, "finetune", "stage 3: finetune a decoder on quantized latents", "fitted tokenizer"
    )
    parser.set_defaults(run=_finetune)
    if command == "finetune":
        _finetune_options(parser)


def _train_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.autoencoders.lapped.model import LappedConfig
    from tokenizer.training.bottlenecks import BOTTLENECKS, BottleneckConfig

    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="base", help="sizes; default: base"
    )
    parser.add_argument(
        "--init", metavar="MODEL", help="tokenizer of the same sizes to start from; default: none"
    )
    parser.add_argument(
        "--init-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        # "deliver weights that are by this share --init's and else the trained ones"
        help=argparse.SUPPRESS,
    )
    group = parser.add_argument_group("sizes (default: the preset's)")
    texts = field_help(LappedConfig)
    for field in fields(LappedConfig):
        name = "--" + field.name.replace("_", "-")
        text = first_sentence(texts[field.name]).replace("%", "%%")
        if field.name not in _SHOWN["LappedConfig"]:
            text = argparse.SUPPRESS
        if isinstance(field.default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            number = float if isinstance(field.default, float) else int
            group.add_argument(name, type=number, metavar="N", help=text)
    _add_training(parser, learning_rate=1e-3)
    parser.add_argument(
        "--bottleneck",
        choices=BOTTLENECKS,
        metavar="KIND",
        help="train a quantizer with the autoencoder, in place of latent noise: "
        f"{', '.join(BOTTLENECKS)}; default: none",
    )
    parser.add_argument("--init-quantizer", metavar="MODEL", help=argparse.SUPPRESS)
    _add(parser, BottleneckConfig, "quantizer, with --bottleneck")


def _fit_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.training.quantizer import FitConfig

    parser.add_argument(
        "--quantizer",
        default="rvq",
        metavar="KIND[:OPTION=VALUE,...]",
        help="as for latok compare, e.g. rfsq:levels=[8,5,5,5]; docs/quantizers.md lists them; "
        "default: rvq",
    )
    parser.add_argument(
        "--codebooks", type=int, default=24, metavar="N", help="number of codebooks; default: 24"
    )
    parser.add_argument(
        "--codebook-size",
        type=int,
        default=1024,
        metavar="N",
        help="entries of a codebook; default: 1024",
    )
    group = parser.add_argument_group("options of the quantizer (default: its own)")
    group.add_argument(
        "--standardization",
        choices=("none", "scalar", "channel", "whiten", "decoder"),
        help="how rvq scales latents before it measures distances",
    )
    group.add_argument(
        "--beam-width",
        type=int,
        metavar="N",
        help="hypotheses that the search for codes keeps; 1 is greedy",
    )
    group.add_argument(
        "--max-points", type=int, metavar="N", help="most latents that are held in memory"
    )
    group.add_argument(
        "--iterations", type=int, metavar="N", help="iterations of k-means, per codebook"
    )
    add_device(parser)
    add_fields(parser, FitConfig, title="latents")


def _finetune_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.training.decoder import FinetuneConfig

    add_fields(parser, FinetuneConfig, title="decoder")
    parser.add_argument(
        "--detail-dim",
        type=int,
        default=0,
        metavar="N",
        help="latents to add that codes leave out, with --decoder continuous; default: 0",
    )
    _add_training(parser, learning_rate=4e-4)
