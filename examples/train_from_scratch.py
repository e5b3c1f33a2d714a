"""A small DAC and a small Oobleck from scratch: what they reconstruct after each doubling of steps.

    python examples/train_from_scratch.py --out scratch

It makes audio, or takes ``--audio FOLDER``, trains both as `latok train --autoencoder` does, and
prints the mel distance and the signal-to-noise ratio of clips that were held out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from made_audio import audio_folder

from tokenizer import cli

RATE = 8000
# Both have 16 numbers for 16 samples.
MODELS = {
    "dac": "encoder_hidden_size=16,hidden_size=16,decoder_hidden_size=48,downsampling_ratios=[4,4]",
    "oobleck": "audio_channels=1,encoder_hidden_size=32,decoder_input_channels=16,"
    "decoder_channels=12,downsampling_ratios=[4,4],channel_multiples=[1,1]",
}
FIGURES = {"mel distance": "val/mel_clean", "SNR in dB": "val/snr_clean"}


def train(kind: str, audio: Path, out: Path, steps: int, first: int) -> dict[int, dict]:
    """Trains a model; the lines of its log that have figures of held-out clips, by step."""
    options = f"--steps {steps} --validate-every {first} --batch-size 4 --crop-seconds 0.5"
    options += " --learning-rate 0.003 --warmup-steps 20 --ema-decay 0.97"
    model = f"{kind}:sampling_rate={RATE},{MODELS[kind]}"
    command = ["train", str(audio), "--out", str(out), *options.split(), "--autoencoder", model]
    if cli.main(command):
        raise SystemExit(f"latok {' '.join(command)} failed.")
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if "val/mel_clean" in line}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of audio and runs")
    parser.add_argument("--audio", type=Path, help="audio to train on; default: made here")
    parser.add_argument("--steps", type=int, default=400, help="steps of the longest training")
    parser.add_argument("--doublings", type=int, default=3, help="of steps, in the table")
    options = parser.parse_args()
    audio = audio_folder(options.audio, options.out, clips=20, seconds=4.0)
    first = options.steps // 2**options.doublings
    steps = [first * 2**i for i in range(options.doublings + 1)]
    logs = {k: train(k, audio, options.out / k, steps[-1], first) for k in MODELS}
    print(f"\n| steps | {' | '.join(map(str, steps))} |\n|---|{'---|' * len(steps)}")
    for kind, log in logs.items():
        for name, column in FIGURES.items():
            print(f"| {kind}, {name} | {' | '.join(f'{log[n][column]:.2f}' for n in steps)} |")


if __name__ == "__main__":
    main()
