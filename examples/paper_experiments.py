"""The paper's experiments on your own model and audio: figures, tables and verdicts.

    python examples/paper_experiments.py TRAIN_AUDIO HELD_OUT_AUDIO --out DIR
        [--models NAME=CHECKPOINT ...] [--e2e NAME=CHECKPOINT ...] [--quantizers SPEC ...]
        [--finetune STEPS]

For every model (default: the bundled one) it fits quantizers to the model's latents, as `latok
compare` does, and writes ``DIR/experiments.json`` and ``DIR/experiments.md``: the model at every
bitrate, standardization or not, beam search or not, finetuning or not, and a comparison to models
trained end to end, with the paper's figures beside ours. Each claim is then judged by the figures
alone. ``DIR/NAME`` is a folder that `latok report --compare` takes.

Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer.evaluation.comparison import (
    CompareConfig,
    Competitor,
    QuantizerSpec,
    compare,
    read_specs,
    write_summary,
)
from tokenizer.evaluation.evaluate import as_table
from tokenizer.model.loading import BUNDLED
from tokenizer.saving import write_json, write_text
from tokenizer.training import CropTrainingConfig
from tokenizer.training.clips import scan
from tokenizer.training.quantizer import FitConfig

# What Lahrichi, Hadjeres, Richard and Peeters' own system scores: the sounds of their demo page (7
# clips of AudioCaps' test set), measured with our metrics. Other clips than ours: their levels do
# not compare with ours exactly, differences within the table do.
PAPER: dict[str, tuple[float, float]] = {  # (SI-SDR dB, mel distance)
    "continuous": (12.70, 0.493),
    "24": (11.54, 0.692),
    "16": (9.54, 0.937),
    "10": (6.35, 1.384),
    "3": (0.53, 2.436),
    "16, no standardization": (9.50, 0.977),
    "16, finetuned": (10.02, 0.836),
    "E2E (1)": (1.28, 1.326),
    "E2E (2)": (5.79, 1.075),
    "E2E (3)": (10.77, 0.715),
}

NONE = "standardization none"
CHANNEL = "standardization channel"
DECODER = "standardization decoder"
BEAM = "standardization none, beam 8"
QUANTIZERS = (
    QuantizerSpec("rvq", {"standardization": "none"}, NONE),
    QuantizerSpec("rvq", {"standardization": "channel"}, CHANNEL),
    QuantizerSpec("rvq", {"standardization": "decoder"}, DECODER),
    QuantizerSpec("rvq", {"standardization": "none", "beam_width": 8}, BEAM),
)
DELIVERED = "as delivered"
METRICS = {"si_sdr": ("SI-SDR dB", 2, 1), "mel": ("mel", 3, -1)}  # title, digits, better if
# A mean difference counts if it is this many times its standard error over the clips.
CLEAR = 2.0


def main() -> None:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description="The paper's experiments.")
    parser.add_argument("train", help="audio to fit quantizers to")
    parser.add_argument("held_out", help="audio to measure on; none of the above")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[f"bundled={BUNDLED}"])
    parser.add_argument("--e2e", nargs="+", default=[], help="models trained end to end")
    parser.add_argument("--quantizers", nargs="+", default=[], help="more, as for latok compare")
    parser.add_argument("--finetune", type=int, default=0, metavar="STEPS")
    parser.add_argument("--bitrates", type=float, nargs="+", default=[24, 16, 10, 3])
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--crop-seconds", type=float, default=1.5)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--segment-seconds", type=float, default=10.0)
    parser.add_argument("--max-frames", type=int, default=FitConfig.max_frames, help="to fit to")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for text in options.models:
        model = Competitor.parse(text)
        results[model.name] = run(model, options)
    claims = judge(results)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "experiments.json", {"claims": claims, "comparisons": results})
    text = report(results, claims)
    write_text(options.out / "experiments.md", text)
    print(text)


def run(model: Competitor, options: argparse.Namespace) -> dict[str, Any]:
    """Compares everything on one model's latents."""
    loop = None
    if options.finetune:
        loop = CropTrainingConfig(
            steps=options.finetune,
            batch_size=options.batch_size,
            crop_seconds=options.crop_seconds,
            learning_rate=4e-4,
            warmup_steps=min(200, options.finetune // 5 + 1),
            mixed_precision=options.mixed_precision,
            num_workers=options.num_workers,
        )
    folder = options.out / model.name
    result = compare(
        model.path,
        scan(options.train),
        scan(options.held_out),
        [*QUANTIZERS, *read_specs(options.quantizers)],
        folder,
        CompareConfig(
            tuple(1000 * rate for rate in options.bitrates),
            options.codebook_size,
            FitConfig(max_frames=options.max_frames, segment_seconds=options.segment_seconds),
            loop,
        ),
        also=[
            *([Competitor(DELIVERED, model.path)] if _has_codes(model.path) else []),
            *(Competitor.parse(text) for text in options.e2e),
        ],
    )
    write_summary(result, folder)
    return result


def _has_codes(path: str) -> bool:
    config = Path(path) / "config.json"
    return config.exists() and json.loads(config.read_text()).get("quantizer") is not None


# Reading a comparison


def entry(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of that name."""
    return next(e for e in result["entries"] if e["name"] == name)


def heard(rate: dict[str, Any], decoder: str | None = None) -> dict[str, Any]:
    """What one rate sounds like: through that decoder, or through the best suited one."""
    name = decoder or ("finetuned" if "finetuned" in rate else "continuous")
    return rate[name]


def difference(better: dict[str, Any], worse: dict[str, Any], metric: str) -> tuple[float, float]:
    """Mean improvement over the clips (positive is better), and its standard error."""
    sign = METRICS[metric][2]
    pairs = zip(better["per_clip"], worse["per_clip"], strict=True)
    values = [sign * (a[metric] - b[metric]) for a, b in pairs]
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


def verdict(differences: list[tuple[float, float]]) -> str:
    """Held, did not hold, or in part: only differences clear of their standard error count."""
    won = sum(mean > CLEAR * error for mean, error in differences)
    lost = sum(mean < -CLEAR * error for mean, error in differences)
    if won == len(differences):
        return "held"
    if lost == len(differences):
        return "did not hold: the contrary did"
    if not won and not lost:
        return "did not hold: no clear difference"
    if not won:
        return "did not hold"
    return f"held in part: {won} of {len(differences)}" + (f", {lost} contrary" if lost else "")


# Judging


def judge(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim, for every model and metric, with the figures that decide it."""
    claims: list[dict[str, Any]] = []

    def claim(model: str, text: str, metric: str, pairs: list[tuple[str, Any, Any]]) -> None:
        if not pairs:
            return
        found = [difference(better, worse, metric) for _, better, worse in pairs]
        title, digits, _ = METRICS[metric]
        evidence = "; ".join(
            f"{name}: {mean:+.{digits}f} ± {error:.{digits}f}"
            for (name, *_), (mean, error) in zip(pairs, found, strict=True)
        )
        claims.append(
            {
                "model": model,
                "claim": text,
                "metric": title,
                "verdict": verdict(found),
                "evidence": evidence,
            }
        )

    for model, result in results.items():
        fitted = [e for e in result["entries"] if e["source"] == "fitted"]
        worst = [max(rate["distortion_db"] for rate in e["rates"]) for e in fitted]
        claims.append(
            {
                "model": model,
                "claim": "Any quantizer can be fitted to frozen latents",
                "metric": "distortion dB",
                "verdict": "held" if max(worst) < 0 else "did not hold for all",
                "evidence": "; ".join(
                    f"{e['name']}: {value:.2f} at its lowest rate"
                    for e, value in zip(fitted, worst, strict=True)
                ),
            }
        )
        for metric in METRICS:
            plain = entry(result, NONE)["rates"]
            claim(
                model,
                "More bits sound better",
                metric,
                [
                    (f"{_rate(high)} over {_rate(low)}", heard(high), heard(low))
                    for high, low in pairwise(plain)
                ],
            )
            for text, better, worse in (
                ("The paper's standardization improves RVQ", CHANNEL, NONE),
                ("Decoder sensitivity beats no standardization", DECODER, NONE),
                ("Decoder sensitivity beats the paper's standardization", DECODER, CHANNEL),
                ("Beam search beats greedy search", BEAM, NONE),
            ):
                rates = zip(
                    entry(result, better)["rates"], entry(result, worse)["rates"], strict=True
                )
                claim(
                    model,
                    text,
                    metric,
                    [(_rate(a), a["continuous"], b["continuous"]) for a, b in rates],
                )
            tuned = [rate for rate in plain if "finetuned" in rate]
            claim(
                model,
                "Finetuning the decoder improves the same codes",
                metric,
                [(_rate(rate), rate["finetuned"], rate["continuous"]) for rate in tuned],
            )
            for other in result["entries"]:
                if other["source"] == "also" and other["name"] != DELIVERED:
                    claim(
                        model,
                        f"A quantizer fitted afterwards beats {other['name']}",
                        metric,
                        _against(result, other),
                    )
    return claims


def _against(result: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Our best entry and another model, at rates that both have."""
    names = [e["name"] for e in result["entries"]]
    ours = entry(result, DELIVERED if DELIVERED in names else NONE)
    pairs = []
    for rate in ours["rates"]:
        for theirs in other["rates"]:
            if math.isclose(rate["kbps"], theirs["kbps"], rel_tol=0.1):
                pairs.append((_rate(rate), heard(rate), heard(theirs)))
    return pairs


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['kbps']:.3g} kbit/s"


# Writing


def report(results: dict[str, dict[str, Any]], claims: list[dict[str, Any]]) -> str:
    """Everything as Markdown."""
    parts = [
        "# The paper's experiments",
        "Differences are means over the held-out clips ± their standard error, positive for "
        f"better; those within {CLEAR:g} standard errors count as none. The paper's figures are "
        "those of its demo page's 7 clips, which are not ours: compare differences, not levels.",
        "## Claims",
        as_table(
            [[c["claim"], c["model"], c["metric"], c["verdict"]] for c in claims],
            ["claim", "latents of", "by", "verdict"],
        ),
    ]
    if len(results) > 1:
        parts += [ranking(results)]
    for model, result in results.items():
        clips = result["held_out"]
        parts += [
            f"## Latents of {model}",
            f"{len(clips['clips'])} held-out clips, {clips['seconds'] / 60:.1f} minutes; "
            f"quantizers fitted to {result['train']['seconds'] / 60:.1f} minutes.",
            figures(result),
            "What decided the claims:",
            as_table(
                [[c["claim"], c["metric"], c["evidence"]] for c in claims if c["model"] == model],
                ["claim", "by", "improvement"],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def figures(result: dict[str, Any]) -> str:
    """All rows with the paper's beside them."""
    exact = result["continuous"]
    rows = [["continuous latents", "", "", *_figures(exact), *_paper("continuous")]]
    for e in result["entries"]:
        for rate in e["rates"]:
            for decoder in ("continuous", "finetuned"):
                if decoder not in rate:
                    continue
                key = _paper_row(e["name"], f"{rate['kbps']:.0f}", decoder)
                own = e["source"] == "also" and decoder == "continuous"
                rows.append(
                    [
                        e["name"],
                        f"{rate['kbps']:.3g}",
                        "own" if own else decoder,
                        *_figures(rate[decoder]),
                        *_paper(key),
                    ]
                )
    return as_table(
        rows, ["", "kbit/s", "decoder", "SI-SDR dB", "mel", "paper: SI-SDR dB", "paper: mel"]
    )


def _figures(found: dict[str, Any]) -> list[str]:
    return [f"{found[metric]:.{digits}f}" for metric, (_, digits, _) in METRICS.items()]


def _paper(key: str) -> list[str]:
    if key not in PAPER:
        return ["", ""]
    return [
        f"{value:.{digits}f}"
        for value, (_, digits, _) in zip(PAPER[key], METRICS.values(), strict=True)
    ]


def _paper_row(name: str, rate: str, decoder: str) -> str:
    """Which of the paper's rows is the same experiment."""
    if name.startswith("E2E"):
        return name if rate == "16" else ""
    if name == DELIVERED and decoder == "finetuned":
        return f"{rate}, finetuned"
    if name == NONE and decoder == "continuous":
        return f"{rate}, no standardization"
    if name == CHANNEL:
        return rate if decoder == "continuous" else f"{rate}, finetuned"
    return ""


def ranking(results: dict[str, dict[str, Any]]) -> str:
    """Which standardization wins on which latents."""
    rows = []
    for model, result in results.items():
        for metric, (title, _, sign) in METRICS.items():
            cells = []
            for index, _ in enumerate(entry(result, NONE)["rates"]):
                best = max(
                    (NONE, CHANNEL, DECODER),
                    key=lambda name: (
                        sign * entry(result, name)["rates"][index]["continuous"][metric]
                    ),
                )
                cells.append(best.removeprefix("standardization "))
            rows.append([model, title, *cells])
    first = next(iter(results.values()))
    header = ["latents of", "by", *(_rate(rate) for rate in entry(first, NONE)["rates"])]
    winners = {tuple(tuple(r[1:]) for r in rows if r[0] == model) for model in results}
    same = "depends on the latents" if len(winners) > 1 else "is the same on all latents"
    table = as_table(rows, header)
    return f"## Which standardization is best\n\n{table}\n\nThe best standardization {same}."


if __name__ == "__main__":
    main()
