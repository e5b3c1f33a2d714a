"""A language model learns the codes of a dataset.

    python examples/train_lm_on_codes.py example/tokens --out example/lm --steps 2000

On several GPUs: ``accelerate launch examples/train_lm_on_codes.py ...``.
"""

import argparse
from pathlib import Path

from generative import TrainingConfig, train_language_model

parser = argparse.ArgumentParser()
parser.add_argument("tokens", type=Path, help="what tokenize_dataset.py wrote")
parser.add_argument("--out", type=Path, default=Path("example/lm"))
parser.add_argument("--tokenizer", help="default: the bundled one")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--width", type=int, default=256)
options = parser.parse_args()

model = train_language_model(
    options.tokens,
    options.out,
    TrainingConfig(options.steps, batch_size=8, crop_frames=256, num_workers=0),
    tokenizer=options.tokenizer,
    n_codebooks=3,
    held_out=0.15,
    pattern="delay",
    width=options.width,
    depth=4,
    heads=4,
)
print(sum(p.numel() for p in model.parameters()) // 1000, "thousand parameters:", options.out)
