"""Draws the pictures of docs/concepts.md, with the bundled model and the example clip.

    python examples/concept_pictures.py --out docs/pictures

Two are diagrams; the others show what the tokenizer does to one clip, and what it costs.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, TensorSource, load_tokenizer
from tokenizer.audio.inputs import open_audio
from tokenizer.evaluation.demo import EXAMPLE
from tokenizer.evaluation.metrics import quality
from tokenizer.model.core import DecoderName
from tokenizer.networks.spectral import stft_magnitude

INK, PALE, BLUE, GREEN, ORANGE = "#222831", "#c9d1d9", "#2f6db5", "#2e8b57", "#d9822b"
STYLE: Any = {
    "svg.hashsalt": "concepts",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

# Size; boxes (x, y, width, text, colour); arrows from (x, y) to (x, y); notes (x, y, text).
PIPELINE: tuple[Any, ...] = (
    (760, 250),
    [
        (10, 95, 90, "audio", INK),
        (150, 95, 100, "encoder", BLUE),
        (310, 30, 110, "latents", GREEN),
        (310, 160, 110, "quantizer", BLUE),
        (470, 160, 80, "codes", ORANGE),
        (480, 30, 120, "continuous\ndecoder", BLUE),
        (590, 160, 110, "finetuned\ndecoder", BLUE),
        (660, 30, 90, "audio", INK),
    ],
    [
        ((100, 115), (150, 115)),
        ((250, 105), (310, 60)),
        ((365, 70), (365, 160)),
        ((420, 50), (480, 50)),
        ((420, 180), (470, 180)),
        ((550, 180), (590, 180)),
        ((600, 50), (660, 50)),
        ((690, 160), (700, 70)),
    ],
    [(365, 20, "diffusion models learn these"), (510, 225, "language models learn these")],
)
STAGES: tuple[Any, ...] = (
    (760, 250),
    [
        (110, 20, 100, "encoder", BLUE),
        (280, 20, 100, "noise", PALE),
        (445, 20, 150, "continuous decoder", BLUE),
        (110, 95, 100, "encoder", PALE),
        (280, 95, 100, "quantizer", BLUE),
        (110, 170, 100, "encoder", PALE),
        (280, 170, 100, "quantizer", PALE),
        (445, 170, 150, "finetuned decoder", BLUE),
    ],
    [
        ((210, 40), (280, 40)),
        ((380, 40), (445, 40)),
        ((210, 115), (280, 115)),
        ((210, 190), (280, 190)),
        ((380, 190), (445, 190)),
    ],
    [
        (50, 45, "1  train"),
        (50, 120, "2  fit"),
        (50, 195, "3  finetune"),
        (350, 240, "blue: learns   grey: does not change"),
    ],
)


def draw_diagram(path: Path, diagram: tuple[Any, ...]) -> None:
    """Writes boxes and arrows as SVG, on white, for light pages and dark ones."""
    (width, height), boxes, arrows, notes = diagram
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        f' orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for (x1, y1), (x2, y2) in arrows:
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5"'
            ' marker-end="url(#a)"/>'
        )
    for x, y, wide, text, colour in boxes:
        parts.append(f'<rect x="{x}" y="{y}" width="{wide}" height="40" rx="6" fill="{colour}"/>')
        lines = text.split("\n")
        ink = INK if colour == PALE else "#fff"
        for number, line in enumerate(lines):
            down = y + 25 + 16 * (number - (len(lines) - 1) / 2)
            parts.append(f'<text x="{x + wide / 2}" y="{down}" fill="{ink}">{escape(line)}</text>')
    for x, y, text in notes:
        parts.append(f'<text x="{x}" y="{y}" fill="{INK}" font-size="12">{escape(text)}</text>')
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def draw_clip(path: Path, tokenizer: LatentTokenizer, audio: np.ndarray) -> None:
    """The same two seconds as sound, latents, codes, and sound again."""
    rate, per_second = tokenizer.sampling_rate, f"{tokenizer.frame_rate:g} a second"
    clip = {"array": audio, "sampling_rate": rate}
    latents, row = tokenizer.encode_latents(clip)["latents"], tokenizer.encode_codes(clip)
    levels = [
        20
        * np.log10(np.maximum(stft_magnitude(torch.from_numpy(wave[0]), 1024, 256).numpy(), 1e-5))
        for wave in (audio, tokenizer.decode_codes(row))
    ]
    spread = (latents - latents.mean(0)) / (latents.std(0) + 1e-6)
    codes, sound = row["codes"], {"vmin": -60, "vmax": 40, "cmap": "magma"}
    panels: list[tuple[str, str, Any, float, dict[str, Any]]] = [
        (f"audio: {rate:,} numbers a second", "kHz", levels[0], rate / 2000, sound),
        (
            f"latents: {latents.shape[1]} numbers, {per_second}",
            *("channel", spread.T, latents.shape[1], {"vmin": -3, "vmax": 3, "cmap": "RdBu_r"}),
        ),
        (
            f"codes: {codes.shape[1]} whole numbers, {per_second}",
            *("codebook", codes.T, codes.shape[1], {"cmap": "viridis"}),
        ),
        ("audio from these codes", "kHz", levels[1], rate / 2000, sound),
    ]
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (title, label, image, top, options) in zip(axes, panels, strict=True):
        extent = (0, audio.shape[-1] / rate, 0, top)
        axis.imshow(image, aspect="auto", origin="lower", extent=extent, **options)
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("seconds")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    # Sixty-four colours: a third of the size.
    picture.quantize(64).save(path, optimize=True)


def draw_residual(path: Path) -> None:
    """Residual quantization of points in the plane: what each stage leaves to the next."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(5, 2, generator=generator)
    points = centres[torch.arange(300) % 5] + 0.35 * torch.randn(300, 2, generator=generator)
    quantizer = ResidualVectorQuantizer(2, num_codebooks=3, codebook_size=6)
    quantizer.fit(TensorSource(points), generator=generator)
    x, codes = points[3], quantizer.encode(points[3:4])
    steps = [torch.zeros(2)] + [quantizer.decode(codes[:, :n])[0] for n in (1, 2, 3)]
    figure = Figure(figsize=(7.2, 2.1), layout="constrained")
    for n, axis in enumerate(figure.subplots(1, 3, sharex=True, sharey=True), 1):
        # Everything that n codes can say when the first n - 1 are these.
        choices = torch.cat([codes[:, : n - 1].expand(6, -1), torch.arange(6)[:, None]], dim=1)
        axis.plot(*points.T, ".", color=PALE, markersize=3, rasterized=True)
        axis.plot(*quantizer.decode(choices).T, "o", color=BLUE, markersize=4)
        for start, stop in pairwise(steps[: n + 1]):
            arrow = {"arrowstyle": "->", "color": ORANGE}
            axis.annotate("", stop.tolist(), start.tolist(), arrowprops=arrow)
        axis.plot(*x, "x", color=INK, markersize=7)
        left = float((x - steps[n]).norm())
        axis.set_title(f"{n} code{'s' * (n > 1)}: {left:.2f} away", loc="left", fontsize=9)
        axis.set(aspect="equal", xticks=[], yticks=[])
    figure.savefig(path, metadata={"Date": None})


def draw_rate(path: Path, tokenizer: LatentTokenizer, audio: np.ndarray) -> None:
    """How close the clip comes back from more and more codes, by both decoders."""
    rate = tokenizer.sampling_rate
    clip = {"array": audio, "sampling_rate": rate}
    row, last = tokenizer.encode_codes(clip), tokenizer.num_codebooks
    counts = [*(n for n in (1, 2, 3, 4, 6, 8, 10, 13, 16, 20) if n < last), last]
    rates = [tokenizer.bitrate(n) / 1000 for n in counts]
    names: tuple[DecoderName, ...] = (tokenizer.codes_decoder, "continuous")
    exact = tokenizer.decode_latents(tokenizer.encode_latents(clip))
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    found = {
        name: [
            tokenizer.decode_codes(row | {"codes": row["codes"][:, :n]}, decoder=name)
            for n in counts
        ]
        for name in dict.fromkeys(names)
    }
    for axis, metric, title in (
        (axes[0], "si_sdr", "SI-SDR, dB (higher is better)"),
        (axes[1], "mel", "mel distance (lower is better)"),
    ):
        for (name, waves), colour in zip(found.items(), (BLUE, ORANGE), strict=False):
            values = [quality(wave, audio, rate)[metric] for wave in waves]
            axis.plot(
                rates, values, "o-", color=colour, markersize=3, label=f"codes, {name} decoder"
            )
        best = quality(exact, audio, rate)[metric]
        axis.axhline(best, color=GREEN, linestyle="--", label="continuous latents")
        axis.set(xlabel="kbit/s", title=title)
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--tokenizer", help="folder or hub id; default: the bundled one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.tokenizer)
    rate = tokenizer.sampling_rate
    clip = open_audio(EXAMPLE, target_rate=rate).read()[:1, : 4 * rate]
    with mpl.rc_context(STYLE):
        draw_diagram(options.out / "pipeline.svg", PIPELINE)
        draw_diagram(options.out / "stages.svg", STAGES)
        draw_clip(options.out / "clip.png", tokenizer, clip[:, : 2 * rate])
        draw_residual(options.out / "residual.svg")
        draw_rate(options.out / "rate.svg", tokenizer, clip)
    print("\n".join(str(path) for path in sorted(options.out.iterdir())))


if __name__ == "__main__":
    main()
