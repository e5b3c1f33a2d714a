"""``latok train | fit | finetune``: the three stages."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import add_device, add_fields, take
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
    from tokenizer.training.autoencoder import (
        ReconstructionConfig,
        mix_weights,
        train_autoencoder,
    )
    from tokenizer.training.data import Augmentation, scan
    from tokenizer.training.loop import LoopConfig

    loop = take(LoopConfig, options)
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
    from tokenizer.training.data import scan
    from tokenizer.training.quantizer import FitConfig, fit_quantizer

    spec = parse_spec(options.quantizer)
    said = {name: getattr(options, name) for name in _SHORTHANDS}
    said = {name: value for name, value in said.items() if value is not None}
    spec = QuantizerSpec(spec.kind, {**said, **spec.options})
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
    from tokenizer.training.autoencoder import ReconstructionConfig
    from tokenizer.training.data import Augmentation, scan
    from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
    from tokenizer.training.detail import add_detail
    from tokenizer.training.loop import LoopConfig

    tokenizer, clips = load_tokenizer(options.model), scan(options.audio)
    loop, finetune = take(LoopConfig, options), take(FinetuneConfig, options)
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
    from tokenizer.training.loop import is_main_process

    if not is_main_process():
        return
    if report and tokenizer.quantizer is not None:
        print(tokenizer.quantizer.report.table())
    tokenizer.save_pretrained(out / "model")
    what = "Model (not yet quantized)" if tokenizer.quantizer is None else "Tokenizer"
    print(f"{what}: {out / 'model'}")


def _training_options(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    from tokenizer.training.adversarial import AdversarialConfig
    from tokenizer.training.autoencoder import ReconstructionConfig
    from tokenizer.training.data import Augmentation
    from tokenizer.training.loop import LoopConfig

    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; resumes if it exists"
    )
    parser.add_argument("--held-out", type=int, default=16, help="clips kept for validation")
    add_fields(parser, LoopConfig, steps=6000, learning_rate=learning_rate)
    add_fields(parser, ReconstructionConfig)
    add_fields(parser, AdversarialConfig)
    add_fields(parser, Augmentation)


def register(commands: Any, command: str | None) -> None:
    """Adds the commands' parsers; options that need torch only to the ``command`` asked for."""
    p = commands.add_parser("train", help="stage 1: train an autoencoder")
    p.set_defaults(run=_train)
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "train":
        from tokenizer.autoencoders.lapped.model import LappedConfig
        from tokenizer.training.bottlenecks import BOTTLENECKS, BottleneckConfig

        p.add_argument("--init", help="tokenizer of the same sizes to start from")
        p.add_argument(
            "--init-share",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="deliver weights that are by this share --init's and else the trained ones",
        )
        p.add_argument("--preset", choices=sorted(PRESETS), default="base", help="default: base")
        group = p.add_argument_group("sizes (default: the preset's)")
        for field in fields(LappedConfig):
            name = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                group.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
            else:
                number = float if isinstance(field.default, float) else int
                group.add_argument(name, type=number)
        _training_options(p, learning_rate=1e-3)
        p.add_argument(
            "--bottleneck",
            choices=BOTTLENECKS,
            help="train a quantizer with the autoencoder (end to end) in place of latent noise",
        )
        p.add_argument(
            "--init-quantizer",
            metavar="MODEL",
            help="tokenizer whose codebooks the bottleneck begins with; default: fitted anew",
        )
        add_fields(p, BottleneckConfig)

    p = commands.add_parser("fit", help="stage 2: fit a quantizer to the latents")
    p.set_defaults(run=_fit)
    p.add_argument("model", help="tokenizer, or a DAC, EnCodec or Oobleck checkpoint")
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "fit":
        from tokenizer.training.quantizer import FitConfig

        p.add_argument("--out", type=Path, required=True)
        p.add_argument(
            "--quantizer",
            default="rvq",
            metavar="KIND[:OPTION=VALUE,...]",
            help="as for latok compare, e.g. rfsq:levels=[8,5,5,5]; docs/quantizers.md lists them; "
            "default: rvq",
        )
        p.add_argument("--codebooks", type=int, default=24, help="default: 24")
        p.add_argument("--codebook-size", type=int, default=1024, help="default: 1024")
        group = p.add_argument_group("options of the quantizer (default: its own)")
        group.add_argument(
            "--standardization",
            choices=("none", "scalar", "channel", "whiten", "decoder"),
            help="of rvq",
        )
        group.add_argument("--beam-width", type=int, help="hypotheses kept; 1 is greedy")
        group.add_argument("--max-points", type=int, help="latents held in memory")
        group.add_argument("--iterations", type=int, help="of k-means, per codebook")
        add_device(p)
        add_fields(p, FitConfig)

    p = commands.add_parser("finetune", help="stage 3: finetune a decoder on quantized latents")
    p.set_defaults(run=_finetune)
    p.add_argument("model", help="fitted tokenizer")
    p.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    if command == "finetune":
        from tokenizer.training.decoder import FinetuneConfig

        p.add_argument(
            "--detail-dim",
            type=int,
            default=0,
            help="first add so many latents that codes leave out (with --decoder continuous)",
        )
        _training_options(p, learning_rate=4e-4)
        add_fields(p, FinetuneConfig)
