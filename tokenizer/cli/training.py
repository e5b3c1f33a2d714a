"""``latok train | fit | finetune``: the three stages."""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import add_command, add_device, add_option, add_strict, clips_of
from tokenizer.command import add_fields, in_run_folder, take
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.latent_tokenizer import LatentTokenizer

# Options of many quantizers that `latok fit` also takes by themselves.
_SHORTHANDS = ("standardization", "beam_width", "max_points", "iterations")


def _crop_settings() -> dict[str, Any]:
    """The dataclasses of settings of training on crops, as `CropRun` names them."""
    from tokenizer.training.adversarial import AdversarialConfig
    from tokenizer.training.augmentation import Augmentation
    from tokenizer.training.config import CropTrainingConfig
    from tokenizer.training.reconstruction import ReconstructionConfig

    return {
        "loop": CropTrainingConfig,
        "losses": ReconstructionConfig,
        "adversarial": AdversarialConfig,
        "augmentation": Augmentation,
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = {name: take(config, options) for name, config in _crop_settings().items()}
    return settings | {"num_held_out": options.held_out}


def _train(options: argparse.Namespace) -> None:
    from tokenizer.cli.starting import first_autoencoder
    from tokenizer.model.latent_tokenizer import LatentTokenizer
    from tokenizer.model.loading import load_tokenizer
    from tokenizer.training.autoencoder import mix_weights, train_autoencoder
    from tokenizer.training.bottlenecks import BOTTLENECKS

    settings: dict[str, Any] = _settings(options) | {"pretrained": options.init is not None}
    end_to_end = options.bottleneck in BOTTLENECKS
    if not 0 <= options.init_share < 1:
        raise InputError(f"--init-share is a share below 1, got {options.init_share:g}.")
    if options.init_share and not options.init:
        raise InputError("--init-share needs --init, the model whose share it is.")
    if options.init_quantizer and not end_to_end:
        raise InputError(
            f"--init-quantizer needs --bottleneck {' or '.join(BOTTLENECKS)}, which begins with it."
        )
    autoencoder = first_autoencoder(options)
    start = deepcopy(autoencoder.state_dict()) if options.init_share else {}
    clips = clips_of(options.audio, options.strict)
    if not end_to_end:
        settings["kl_weight"] = options.kl_weight if options.bottleneck == "kl" else None
        train_autoencoder(autoencoder, clips, options.out, **settings)
        tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    else:
        from tokenizer.training.bottlenecks import BottleneckConfig
        from tokenizer.training.end_to_end import train_end_to_end

        settings |= {"kind": options.bottleneck, "config": take(BottleneckConfig, options)}
        if options.init_quantizer:
            settings["start"] = load_tokenizer(options.init_quantizer).quantizer
            if settings["start"] is None:
                raise InputError(f"{options.init_quantizer} has no quantizer to begin from.")
        tokenizer = train_end_to_end(autoencoder, clips, options.out, **settings)
    if options.init_share:
        mix_weights(autoencoder, start, options.init_share)
        # The quantizer was trained with other latents.
        tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    _deliver(tokenizer, options.out, report=True)


def _fit(options: argparse.Namespace) -> None:
    from tokenizer.devices import device_of
    from tokenizer.evaluation.comparison.specs import QuantizerSpec, parse_spec
    from tokenizer.model.loading import load_for_fitting
    from tokenizer.training.quantizer import FitConfig, fit_quantizer

    spec = parse_spec(options.quantizer)
    shorthands = {n: v for n in _SHORTHANDS if (v := getattr(options, n)) is not None}
    spec = QuantizerSpec(spec.kind, {**shorthands, **spec.options})
    device = device_of(options.device)
    tokenizer = load_for_fitting(options.model).to(device)  # pyright: ignore[reportArgumentType]
    quantizer = spec.build(
        tokenizer.coded_dim, num_codebooks=options.codebooks, codebook_size=options.codebook_size
    )
    fit_quantizer(
        tokenizer,
        clips_of(options.audio, options.strict),
        quantizer,
        cache=options.out / "latents.npy",
        config=take(FitConfig, options),
        checkpoint=options.out / "quantizer.safetensors",
    )
    _deliver(tokenizer, options.out, report=True)


def _finetune(options: argparse.Namespace) -> None:
    from tokenizer.model.loading import load_tokenizer
    from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
    from tokenizer.training.detail import add_detail
    from tokenizer.training.noise import add_decoder_noise

    tokenizer, clips = load_tokenizer(options.model), clips_of(options.audio, options.strict)
    settings, finetune = _settings(options), take(FinetuneConfig, options)
    if options.detail_dim:
        if finetune.decoder != "continuous":
            raise InputError("--detail-dim needs --decoder continuous, which has to learn it.")
        seed = settings["loop"].seed
        tokenizer = add_detail(tokenizer, clips, options.detail_dim, seed=seed)
    if options.noise:
        tokenizer = add_decoder_noise(tokenizer)
    finetune_decoder(tokenizer, clips, options.out, finetune=finetune, **settings)
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
    "ReconstructionConfig": ("mel_weight", "waveform_weight", "noise_range"),
    "AdversarialConfig": ("adversarial_weight", "feature_weight"),
    "Augmentation": (),
    "BottleneckConfig": ("codebooks", "codebook_size"),
    "FinetuneConfig": ("decoder", "min_codebooks", "continue_finetuned", "coded_share"),
    "LappedConfig": ("sampling_rate", "hop_length", "latent_dim", "channels"),
}


def _add(parser: argparse.ArgumentParser, config: type, title: str, **defaults: Any) -> None:
    add_fields(parser, config, title=title, shown=_SHOWN[config.__name__], **defaults)


def _command(commands: Any, name: str, run: Any, text: str, model: str | None = None) -> Any:
    """A command on audio, with the options that all three have."""
    words = "AUDIO" if model is None else "MODEL AUDIO"
    parser = add_command(
        commands,
        name,
        in_run_folder(run),
        text,
        description=f"{text[0].upper()}{text[1:]}.",
        usage=f"latok {name} {words} --out FOLDER [options]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=100),
    )
    if model is not None:
        parser.add_argument("model", metavar="MODEL", help=model)
    text = "folder of audio, saved dataset, or dataset:NAME"
    parser.add_argument("audio", metavar="AUDIO", help=text)
    text = "folder of the run; an earlier run in it is resumed"
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=text)
    add_strict(parser)
    # `expand_config` has replaced it by what the file says.
    text = "TOML or JSON file of options (batch_size = 8), which the command line overrides; "
    text += "docs/howto/train.md lists all"
    add_option(parser, "--config", text, type=Path, metavar="FILE")
    return parser


def register(commands: Any, command: str | None) -> None:
    """Adds the commands' parsers; options that need torch only to the ``command`` asked for."""
    parser = _command(commands, "train", _train, "stage 1: train an autoencoder")
    if command == "train":
        _train_options(parser)
    model = "tokenizer, or an autoencoder of transformers or diffusers"
    parser = _command(commands, "fit", _fit, "stage 2: fit a quantizer to the latents", model)
    if command == "fit":
        _fit_options(parser)
    text = "stage 3: finetune a decoder on quantized latents"
    parser = _command(commands, "finetune", _finetune, text, "fitted tokenizer")
    if command == "finetune":
        _finetune_options(parser)


def _add_crop_settings(parser: argparse.ArgumentParser, learning_rate: float) -> None:
    add_option(parser, "--held-out", "clips kept for validation", 16)
    titles = ("training", "losses", "discriminators", "augmentation of the crops")
    for title, config in zip(titles, _crop_settings().values(), strict=True):
        defaults = {"steps": 6000, "learning_rate": learning_rate} if title == "training" else {}
        _add(parser, config, title, **defaults)


def _train_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.autoencoders.lapped.model import LappedConfig
    from tokenizer.cli.starting import PRESETS
    from tokenizer.training.bottlenecks import BOTTLENECKS, BottleneckConfig

    text = f"sizes: {' or '.join(sorted(PRESETS))}; default: base"
    add_option(parser, "--preset", text, choices=sorted(PRESETS), metavar="NAME")
    text = "class of another library, e.g. dac:sampling_rate=16000; default: none"
    add_option(parser, "--autoencoder", text, metavar="KIND")
    text = "tokenizer or autoencoder of another library to go on from; default: none"
    add_option(parser, "--init", text, metavar="MODEL")
    # "deliver weights that are by this share --init's and else the trained ones"
    parser.add_argument("--init-share", type=float, default=0.0, help=argparse.SUPPRESS)
    _add(parser, LappedConfig, "sizes (default: the preset's)", optional=True)
    _add_crop_settings(parser, learning_rate=1e-3)
    text = f"in place of latent noise: {', '.join(BOTTLENECKS)} or kl; default: none"
    add_option(parser, "--bottleneck", text, choices=(*BOTTLENECKS, "kl"), metavar="KIND")
    text = "weight of the KL divergence in nats a frame, of kl"
    add_option(parser, "--kl-weight", text, 1e-4)
    parser.add_argument("--init-quantizer", metavar="MODEL", help=argparse.SUPPRESS)
    _add(parser, BottleneckConfig, "quantizer, with --bottleneck rvq and the like")


def _fit_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.training.quantizer import FitConfig

    text = "as for latok compare, e.g. rfsq:levels=[8,5,5,5]; docs/quantizers.md lists them"
    add_option(parser, "--quantizer", text, "rvq", metavar="KIND[:OPTION=VALUE,...]")
    add_option(parser, "--codebooks", "number of codebooks", 24)
    add_option(parser, "--codebook-size", "entries of a codebook", 1024)
    group = parser.add_argument_group("options of the quantizer (default: its own)")
    group.add_argument(
        "--standardization",
        choices=("none", "scalar", "channel", "whiten", "decoder"),
        help="how rvq scales latents before it measures distances",
    )
    for name, text in (
        ("--beam-width", "hypotheses that the search for codes keeps; 1 is greedy"),
        ("--max-points", "most latents that are held in memory"),
        ("--iterations", "iterations of k-means, per codebook"),
    ):
        add_option(group, name, text, type=int)
    add_device(parser)
    add_fields(parser, FitConfig, title="latents")


def _finetune_options(parser: argparse.ArgumentParser) -> None:
    from tokenizer.training.decoder import FinetuneConfig

    _add(parser, FinetuneConfig, "decoder")
    text = "latents to add that codes leave out, with --decoder continuous"
    add_option(parser, "--detail-dim", text, 0)
    text = "give the decoder noise to add, if it was trained without; default: no"
    parser.add_argument("--noise", action="store_true", help=text)
    _add_crop_settings(parser, learning_rate=4e-4)
