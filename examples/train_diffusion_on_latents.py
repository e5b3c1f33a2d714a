"""A diffusion model learns the latents of a dataset.

    python examples/train_diffusion_on_latents.py example/tokens --out example/diffusion

On several GPUs: ``accelerate launch examples/train_diffusion_on_latents.py ...``.
"""

import argparse
from pathlib import Path

from generative import TrainingConfig, train_diffusion

parser = argparse.ArgumentParser()
parser.add_argument("tokens", type=Path, help="what tokenize_dataset.py wrote")
parser.add_argument("--out", type=Path, default=Path("example/diffusion"))
parser.add_argument("--tokenizer", help="default: the bundled one")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--width", type=int, default=256)
options = parser.parse_args()

model = train_diffusion(
    options.tokens,
    options.out,
    TrainingConfig(options.steps, batch_size=8, crop_frames=256, num_workers=0),
    tokenizer=options.tokenizer,
    held_out=0.15,
    width=options.width,
    depth=4,
    heads=4,
)
print(sum(p.numel() for p in model.parameters()) // 1000, "thousand parameters:", options.out)
