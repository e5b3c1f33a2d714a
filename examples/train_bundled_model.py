"""The recipes of the bundled models, all stages by one command.

    python examples/train_bundled_model.py AUDIO --out DIR [--model base] [--budget cpu-night]
        [--mixed-precision bf16] [--held-out CLIPS]

For "base" it runs `latok train` (twice: the second time with more weight on the mel distance and
less noise), `latok fit`, `latok train` with that quantizer in place of the noise, `latok fit` anew,
`latok finetune` (twice: the continuous decoder further, with noise, and detail for exact latents;
from it a decoder of codes) and `latok export`, and prints each command before it does. "compact",
half as many frames for generative models, is trained, fitted, and finetuned twice.
Stopped and started again, it goes on where it was: in the middle of training too.
``DIR/model`` is the tokenizer. With ``--held-out`` it is measured on clips that are not in AUDIO,
and ``DIR/curve.md`` and ``DIR/curve.png`` show quality against training time.

Budgets: "cpu-hours" is about what the shipped model had, "cpu-night" two CPU cores overnight, "gpu"
one GPU (with discriminators); "rehearsal" shows in a minute that all of it runs. bfloat16 saves
time where the processor computes in it (on Linux, ``grep avx512_bf16 /proc/cpuinfo`` finds
something), and costs time where it is emulated: there say ``--mixed-precision no``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

_SHORT = "--batch-size 2 --held-out 1 --num-workers 0"
_SMALL = "--codebooks 4 --codebook-size 16 --iterations 2"
_CPU = "--batch-size 10"
_GPU = "--batch-size 32 --num-workers 12"
_GPU += " --adversarial-weight 0.2 --feature-weight 0.2"
BUDGETS = {
    "rehearsal": {
        "train": f"--preset tiny --steps 4 {_SHORT}",
        "further": f"--preset tiny --steps 2 {_SHORT}",
        "fit": _SMALL,
        "joint": f"--preset tiny --steps 2 {_SHORT} --codebooks 4 --codebook-size 16",
        "refit": _SMALL,
        "latents": f"--steps 2 {_SHORT} --detail-dim 8 --noise",
        "finetune": f"--steps 2 {_SHORT} --noise",
    },
    "cpu-hours": {
        "train": f"--steps 4500 {_CPU}",
        "further": f"--steps 2700 {_CPU}",
        "fit": "--max-frames 1600000",
        "joint": f"--steps 2100 {_CPU}",
        "refit": "--max-frames 1600000",
        "latents": f"--steps 4300 {_CPU}",
        "finetune": f"--steps 4800 {_CPU}",
    },
    "cpu-night": {
        "train": f"--steps 16000 {_CPU}",
        "further": f"--steps 16000 {_CPU}",
        "fit": "--max-frames 2200000",
        "joint": f"--steps 8000 {_CPU}",
        "refit": "--max-frames 2200000",
        "latents": f"--steps 12000 {_CPU}",
        "finetune": f"--steps 12000 {_CPU}",
    },
    "gpu": {
        "train": f"--steps 30000 {_GPU}",
        "further": f"--steps 30000 {_GPU}",
        "fit": "--max-frames 2200000 --device cuda",
        "joint": f"--steps 15000 {_GPU}",
        "refit": "--max-frames 2200000 --device cuda",
        "latents": f"--steps 10000 {_GPU}",
        "finetune": f"--steps 15000 {_GPU}",
    },
}
_STAGE3 = "--mel-weight 12 --learning-rate 7e-4 --warmup-steps 100"
_STAGE3 += " --noise --energy-weight 2 --repetition-weight 6 --speed 0.5"
_FIT = "--codebooks 24 --beam-width 4 --iterations 10 --max-points 1600000"
_FIT += " --quantizer rvq:refinements=1"
# What all budgets but the rehearsal share.
SHARED = {
    "train": "--preset base",
    "further": "--preset base --learning-rate 7e-4 --mel-weight 3 --noise-range -0.2 0.55",
    "fit": _FIT,
    "joint": "--preset base --codebooks 24 --learning-rate 6e-4 --mel-weight 4",
    "refit": _FIT,
    "latents": f"--detail-dim 80 {_STAGE3}",
    "finetune": _STAGE3,
}
# LAST is the model of the stage before.
COMMANDS = {
    "train": "train",
    "further": "train --init LAST",
    "fit": "fit LAST",
    "joint": "train --init LAST --init-quantizer LAST --bottleneck rvq --codebook-decay 1"
    " --commitment-weight 0.1 --codebook-dropout 0.45 --exact-share 0.35 --init-share 0.5",
    "refit": "fit LAST",
    "latents": "finetune LAST --decoder continuous --noise-range -1 0.4",
    "finetune": "finetune LAST",
}
# The same of the compact model.
COMPACT_BUDGETS = {
    "rehearsal": {
        "train": f"--preset tiny --steps 4 {_SHORT}",
        "fit": _SMALL,
        "latents": f"--steps 2 {_SHORT} --noise",
        "finetune": f"--steps 2 {_SHORT} --noise",
    },
    "cpu-hours": {
        "train": "--steps 4000 --batch-size 6",
        "fit": "--max-frames 1060000",
        "latents": "--steps 1000 --batch-size 8",
        "finetune": "--steps 2400 --batch-size 8",
    },
    "cpu-night": {
        "train": f"--steps 24000 {_CPU}",
        "fit": "--max-frames 1060000",
        "latents": f"--steps 6000 {_CPU}",
        "finetune": f"--steps 12000 {_CPU}",
    },
    "gpu": {
        "train": f"--steps 60000 {_GPU}",
        "fit": "--max-frames 1060000 --device cuda",
        "latents": f"--steps 10000 {_GPU}",
        "finetune": f"--steps 15000 {_GPU}",
    },
}
_COMPACT_STAGE3 = "--mel-weight 12 --learning-rate 6e-4 --warmup-steps 100 --emphasis 0.6"
_COMPACT_STAGE3 += " --noise --energy-weight 2 --repetition-weight 6 --speed 0.5 --crop-seconds 0.8"
COMPACT_SHARED = {
    "train": "--preset compact --emphasis 0.6 --mel-scales-per-step 2 --noise-range -0.15 0.6"
    " --speed 0.3",
    "fit": "--codebooks 8 --beam-width 4 --iterations 10 --max-points 800000"
    " --quantizer rvq:refinements=1",
    "latents": f"{_COMPACT_STAGE3} --noise-from 4000",
    "finetune": f"{_COMPACT_STAGE3} --noise-from 3000",
}
COMPACT_COMMANDS = {
    "train": "train",
    "fit": "fit LAST",
    "latents": "finetune LAST --decoder continuous --noise-range -1 0.3",
    "finetune": "finetune LAST",
}
MODELS = {
    "base": (BUDGETS, SHARED, COMMANDS),
    "compact": (COMPACT_BUDGETS, COMPACT_SHARED, COMPACT_COMMANDS),
}


def latok(*arguments: object) -> None:
    """Prints and runs a command; a failure ends the script with its status."""
    words = [str(a) for a in arguments]
    print("latok", shlex.join(words), flush=True)
    done = subprocess.run([sys.executable, "-m", "tokenizer", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def curve(log: Path) -> list[tuple[float, dict[str, float]]]:
    """What a run's log says of held-out crops, each with the hours trained until then."""
    hours, last, found = 0.0, 0, []
    for line in map(json.loads, log.read_text().splitlines()):
        if "train/steps_per_second" in line:
            hours += (line["step"] - last) / line["train/steps_per_second"] / 3600
            last = line["step"]
        else:
            values = {k.removeprefix("val/"): v for k, v in line.items() if k != "step"}
            found.append((hours, {"step": line["step"], **values}))
    return found


def write_curves(logs: list[Path], out: Path) -> None:
    """Tables and a picture of quality against training time, from the logs of the stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(logs), 3.6), layout="constrained")
    axes = figure.subplots(1, len(logs), squeeze=False)[0]
    text = ["Held-out crops of the training data; averaged weights.\n"]
    for ax, log in zip(axes, logs, strict=True):
        points = curve(log)
        names = [name for name in points[-1][1] if name != "step"]
        text += [f"## {log.parent.name}\n", "| hours | step | " + " | ".join(names) + " |"]
        text += ["|" + "---|" * (len(names) + 2)]
        for hours, values in points:
            figures = " | ".join(f"{values[name]:.3f}" for name in names)
            text.append(f"| {hours:.2f} | {values['step']} | {figures} |")
        text.append("")
        for name in (n for n in names if "mel" in n):
            ax.plot([p[0] for p in points], [p[1][name] for p in points], marker=".", label=name)
        ax.set(title=log.parent.name, xlabel="hours", ylabel="mel distance")
        ax.grid(alpha=0.3)
        ax.legend()
    (out / "curve.md").write_text("\n".join(text))
    figure.savefig(out / "curve.png", dpi=120)
    print("\n".join(text))


def main() -> None:
    """Runs the stages that are not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audio", help="folder of audio, saved dataset, or dataset:NAME")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(MODELS), default="base", help="default: base")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="cpu-night")
    parser.add_argument("--mixed-precision", default="bf16", help='"bf16" or "no"; default: bf16')
    parser.add_argument("--held-out", help="clips to measure on")
    options = parser.parse_args()
    budgets, shared, commands = MODELS[options.model]
    out, budget = options.out, budgets[options.budget]
    if options.budget != "rehearsal":
        budget = {stage: f"{shared[stage]} {words}" for stage, words in budget.items()}
    folders = {stage: out / f"{i}-{stage}" for i, stage in enumerate(budget, start=1)}
    last: Path | None = None
    for stage, words in budget.items():
        command, *given = [last if word == "LAST" else word for word in commands[stage].split()]
        if not (folders[stage] / "model" / "config.json").exists():
            said = words.split()
            if command != "fit":
                said += ["--mixed-precision", options.mixed_precision]
            latok(command, *given, options.audio, "--out", folders[stage], *said)
        last = folders[stage] / "model"
    if not (out / "model" / "config.json").exists():
        latok("export", last, out / "model")
    trained = [stage for stage in budget if "fit" not in stage]
    write_curves([folders[stage] / "log.jsonl" for stage in trained], out)
    if options.held_out:
        latok("evaluate", options.held_out, "--model", out / "model")


if __name__ == "__main__":
    main()
