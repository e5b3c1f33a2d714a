"""The whole path in one script: audio folder, codes and latents, two models, generated audio.

    python examples/audio_folder_to_generated_audio.py --audio FOLDER --out example --steps 5000

Every stage shows its progress and goes on where it was, when the script is started again.
"""

import argparse
from pathlib import Path

from made_audio import audio_folder

from datasets_scripts import RowOptions, prepare_dataset
from generative import (
    TrainingConfig,
    generate,
    load_run,
    make_request,
    save_clips,
    train_diffusion,
    train_language_model,
    write_report,
)

parser = argparse.ArgumentParser()
parser.add_argument("--audio", type=Path, help="default: made on the fly")
parser.add_argument("--out", type=Path, default=Path("example"))
parser.add_argument("--tokenizer", help="default: the bundled one")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--seconds", type=float, default=3.0)
options = parser.parse_args()

print("1 of 4: audio to codes and latents")
tokens = options.out / "tokens"
prepare_dataset(
    "audiofolder",
    audio_folder(options.audio, options.out),
    tokens,
    tokenizer=options.tokenizer,
    options=RowOptions(codes=True, latents=True, segment_seconds=10, downmix=True),
    progress=True,
)

shared = {"tokenizer": options.tokenizer, "held_out": 0.15, "preview_seconds": options.seconds}
sizes = {"width": options.width, "depth": 4, "heads": 4}
config = TrainingConfig(
    options.steps, batch_size=8, crop_frames=256, warmup_steps=options.steps // 10, num_workers=0
)
print("2 of 4: a language model of the codes")
train_language_model(tokens, options.out / "lm", config, n_codebooks=3, **sizes, **shared)

print("3 of 4: a diffusion model of the latents")
train_diffusion(tokens, options.out / "diffusion", config, **sizes, **shared)

print("4 of 4: generated audio")
for name in ("lm", "diffusion"):
    model, tokenizer, run = load_run(options.out / name)
    request = make_request(
        tokenizer,
        options.seconds,
        labels=model.labels or (None,),
        n_codebooks=run.get("n_codebooks"),
        guidance_scale=2.0,
    )
    clips = generate(model, tokenizer, request, seed=0)
    save_clips(clips, options.out / "clips" / name, tokenizer.sampling_rate, {"title": name})
runs = [options.out / "lm", options.out / "diffusion"]
write_report(options.out / "report.html", [options.out / "clips" / r.name for r in runs], runs=runs)
print("Open", options.out / "report.html")
