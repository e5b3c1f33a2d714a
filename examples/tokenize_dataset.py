"""A folder of audio becomes a dataset of codes and latents.

    python examples/tokenize_dataset.py [--audio FOLDER] --out tokens

Folders within it are classes (``speech/``, ``music/``, ...). Stopped, it goes on where it was.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from made_audio import audio_folder

from datasets_scripts import RowOptions, prepare_dataset
from tokenizer import load_tokenizer

parser = argparse.ArgumentParser()
parser.add_argument("--audio", type=Path, help="default: made on the fly")
parser.add_argument("--out", type=Path, default=Path("example/tokens"))
parser.add_argument("--tokenizer", help="default: the bundled one")
options = parser.parse_args()

manifest = prepare_dataset(
    "audiofolder",
    audio_folder(options.audio, options.out.parent),
    options.out,
    tokenizer=options.tokenizer,
    options=RowOptions(codes=True, latents=True, segment_seconds=10, downmix=True),
    progress=True,
)
print(f"{sum(shard.rows for shard in manifest.shards)} rows at {manifest.frame_rate:g} frames/s")

# It is a dataset like any other, and each row decodes.
row = load_dataset(str(options.out), split="train").with_format("numpy")[0]
print(row["label"], "codes", row["codes"].shape, "latents", row["latents"].shape)
audio = load_tokenizer(options.tokenizer).decode_codes(row)
print("decoded:", audio.shape)
