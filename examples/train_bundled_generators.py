"""The generative models of the package: prepare, train both, sample, evaluate, report.

    python examples/train_bundled_generators.py AUDIO --out runs/generators

AUDIO is a folder of folders, one a class (``speech/``, ``music/``, ``sound/``), or a folder with a
``metadata.csv``. Everything is resumable and a function of the seed. "small" is what the package
brings: an hour or two for each model on a CPU core. "base" is for a GPU (with ``accelerate launch``
for several). ``--lm-steps`` and ``--diffusion-steps`` set the lengths.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState

from datasets_scripts import RowOptions, prepare_dataset
from generative import (
    TrainingConfig,
    evaluate_run,
    export_run,
    generate,
    load_run,
    make_request,
    save_clips,
    train_diffusion,
    train_language_model,
    write_report,
)

# Of the language model and of the diffusion model.
SIZES = {
    "tiny": ({"width": 32, "depth": 2, "heads": 2},) * 2,  # to see that all of it runs
    "small": ({"width": 256, "depth": 5, "heads": 4}, {"width": 256, "depth": 6, "heads": 4}),
    "base": ({"width": 512, "depth": 12, "heads": 8},) * 2,
}

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("audio", type=Path)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--size", choices=SIZES, default="small")
parser.add_argument("--tokenizer", default="compact-44khz", help="default: compact-44khz")
parser.add_argument("--label-column", help="column of metadata.csv that holds the class")
parser.add_argument("--codebooks", type=int, default=4, help="of the language model; default: 4")
parser.add_argument("--pattern", default="delay")
parser.add_argument("--segment-seconds", type=float, default=10.0)
parser.add_argument("--crop-frames", type=int, default=320)
parser.add_argument("--lm-batch-size", type=int, default=8)
parser.add_argument("--diffusion-batch-size", type=int, default=12)
parser.add_argument("--lm-steps", type=int, default=2000)
parser.add_argument("--diffusion-steps", type=int, default=2600)
parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16", "fp16"))
parser.add_argument("--clips", type=int, default=4, help="samples of each class; default: 4")
parser.add_argument("--seconds", type=float, default=5.0, help="of the samples; default: 5")
parser.add_argument("--evaluation-clips", type=int, default=96)
parser.add_argument("--held-out", type=float, default=0.05, help="share of the files")
parser.add_argument("--num-workers", type=int, default=1)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

out = options.out
state = PartialState()
with state.main_process_first():
    if state.is_main_process:
        column = {} if options.label_column is None else {"label_column": options.label_column}
        prepare_dataset(
            "audiofolder",
            options.audio,
            out / "tokens",
            tokenizer=options.tokenizer,
            options=RowOptions(
                latents=True,
                # A beam's best codes of 3 codebooks are not the first 3 of more.
                n_codebooks=options.codebooks,
                segment_seconds=options.segment_seconds,
                downmix=True,
            ),
            corpus_options=column,
            progress=True,
        )


def settings(steps: int, batch_size: int, learning_rate: float) -> TrainingConfig:
    """Those of one model."""
    return TrainingConfig(
        steps,
        batch_size=batch_size,
        crop_frames=options.crop_frames,
        learning_rate=learning_rate,
        warmup_steps=min(200, steps // 20),
        mixed_precision=options.mixed_precision,
        num_workers=options.num_workers,
        seed=options.seed,
    )


shared = {"tokenizer": options.tokenizer, "held_out": options.held_out}
lm_size, diffusion_size = SIZES[options.size]
train_language_model(
    out / "tokens",
    out / "lm",
    settings(options.lm_steps, options.lm_batch_size, 1e-3),
    n_codebooks=options.codebooks,
    pattern=options.pattern,
    **lm_size,
    **shared,
)
train_diffusion(
    out / "tokens",
    out / "diffusion",
    settings(options.diffusion_steps, options.diffusion_batch_size, 8e-4),
    **diffusion_size,
    **shared,
)

if state.is_main_process:
    for name in ("lm", "diffusion"):
        model, tokenizer, run = load_run(out / name)
        request = make_request(
            tokenizer,
            options.seconds,
            labels=[label for label in model.labels for _ in range(options.clips)],
            n_codebooks=run.get("n_codebooks"),
            guidance_scale=2.0,
        )
        clips = generate(model, tokenizer, request, seed=options.seed)
        rate = tokenizer.sampling_rate
        save_clips(clips, out / "clips" / name, rate, {"title": run["family"]})
        result = evaluate_run(
            out / name,
            out / "tokens",
            clips=options.evaluation_clips,
            seconds=options.seconds,
            seed=options.seed,
            held_out=options.held_out,
            progress=True,
        )
        (out / f"{name}.json").write_text(json.dumps(result, indent=1))
        export_run(out / name, out / "export" / name)
    write_report(
        out / "report.html",
        [out / "clips" / name for name in ("lm", "diffusion")],
        runs=[out / "lm", out / "diffusion"],
        evaluations=[out / "lm.json", out / "diffusion.json"],
        title="Latent Tokenizer: generated examples",
    )
    print("Open", out / "report.html")
