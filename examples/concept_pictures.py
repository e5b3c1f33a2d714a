"""Draws the pictures of the documentation, with the bundled model and the example clip.

    python examples/concept_pictures.py --out docs/pictures

Some are diagrams; the others show what the tokenizer does to one clip, and what it costs.
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
from tokenizer.audio import open_audio
from tokenizer.evaluation.demo import EXAMPLE
from tokenizer.evaluation.metrics import quality
from tokenizer.model.parts import DecoderName
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


def box(x: int, y: int, wide: int, text: str, colour: str, high: int = 40) -> str:
    """A rectangle with its upper left corner at (x, y); PALE ones have dark text."""
    ink, lines = INK if colour == PALE else "#fff", text.split("\n")
    parts = [f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{colour}"/>']
    for number, line in enumerate(lines):
        down = y + high / 2 + 5 + 16 * (number - (len(lines) - 1) / 2)
        parts.append(f'<text x="{x + wide / 2:g}" y="{down:g}" fill="{ink}">{escape(line)}</text>')
    return "".join(parts)


def arrow(*points: tuple[int, int], both: bool = False) -> str:
    """A line along points, with a head at its end, or at both."""
    way = " ".join(f"{x},{y}" for x, y in points)
    start = ' marker-start="url(#a)"' if both else ""
    return (
        f'<polyline points="{way}" fill="none" stroke="{INK}" stroke-width="1.5"'
        f'{start} marker-end="url(#a)"/>'
    )


def note(x: int, y: int, text: str, size: int = 12, anchor: str = "middle") -> str:
    """A line of text on the ground."""
    return (
        f'<text x="{x}" y="{y}" fill="{INK}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def waves(x: int, y: int) -> str:
    """Audio: 16 bars of 80 by 40."""
    heights = (4, 10, 22, 34, 26, 14, 30, 40, 28, 12, 20, 32, 18, 8, 14, 5)
    bars = (f"M{x + 3 + 5 * i} {y + 20 - h / 2:g}v{h}" for i, h in enumerate(heights))
    return f'<path d="{"".join(bars)}" stroke="{INK}" stroke-width="3"/>'


def cells(x: int, y: int, colour: str) -> str:
    """Latents or codes: 8 by 4 cells of 80 by 40."""
    parts = [
        f'<rect x="{x + 10 * i}" y="{y + 10 * j}" width="9" height="9" fill="{colour}"'
        f' fill-opacity="{0.25 + 0.15 * ((3 * i + 5 * j + i * j) % 6):.2f}"/>'
        for i in range(8)
        for j in range(4)
    ]
    return "".join(parts)


def back_to_audio(x: int, y: int, colour: str, name: str, size: str, decoder: str) -> list[str]:
    """Latents or codes from (x, y) on, their decoder, and audio."""
    return [
        cells(x, y, colour),
        arrow((x + 86, y + 20), (638, y + 20)),
        note(x + 102, y + 11, name, 14, "start"),
        note(x + 102, y + 38, size, 12, "start"),
        box(640, y, 130, f"{decoder}\ndecoder", BLUE),
        arrow((770, y + 20), (798, y + 20)),
        waves(806, y),
    ]


# Width, height, and what is drawn.
PIPELINE = (
    900,
    286,
    [
        waves(20, 85),
        note(60, 143, "audio"),
        arrow((108, 105), (138, 105)),
        box(140, 85, 100, "encoder", BLUE),
        arrow((240, 105), (283, 105)),
        box(230, 10, 200, "diffusion transformer", PALE, 36),
        arrow((330, 80), (330, 50), both=True),
        *back_to_audio(290, 85, GREEN, "latents", "192 numbers, 100 times a second", "continuous"),
        arrow((330, 130), (330, 163)),
        box(280, 165, 100, "quantizer", BLUE),
        arrow((380, 185), (413, 185)),
        *back_to_audio(420, 165, ORANGE, "codes", "1 to 24 a frame", "finetuned"),
        arrow((460, 210), (460, 238), both=True),
        box(360, 240, 200, "language model", PALE, 36),
    ],
)
STAGES = (
    620,
    250,
    [
        note(50, 45, "1 train"),
        box(110, 20, 100, "encoder", BLUE),
        arrow((210, 40), (278, 40)),
        box(280, 20, 100, "noise", PALE),
        arrow((380, 40), (443, 40)),
        box(445, 20, 150, "continuous decoder", BLUE),
        note(50, 120, "2 fit"),
        box(110, 95, 100, "encoder", PALE),
        arrow((210, 115), (278, 115)),
        box(280, 95, 100, "quantizer", BLUE),
        note(50, 195, "3 finetune"),
        box(110, 170, 100, "encoder", PALE),
        arrow((210, 190), (278, 190)),
        box(280, 170, 100, "quantizer", PALE),
        arrow((380, 190), (443, 190)),
        box(445, 170, 150, "finetuned decoder", BLUE),
        note(310, 240, "blue: trained in this stage · grey: frozen"),
    ],
)


# The rooms of each package, from what people run down to what needs nothing else.
PACKAGES = {
    "tokenizer": (
        (20, 420, BLUE),
        ("cli", "benchmarks"),
        ("app", "evaluation"),
        ("training", "export", "transcoding"),
        ("model", "codefile"),
        ("autoencoders", "quantizers"),
        ("networks", "audio"),
    ),
    "generative": (
        (470, 250, GREEN),
        ("cli", "benchmarks"),
        ("evaluation",),
        ("runs",),
        ("diffusion", "language_model"),
        ("training",),
        ("conditioning", "protocol"),
    ),
    "datasets_scripts": (
        (750, 210, ORANGE),
        ("cli", "benchmarks"),
        ("preparation",),
        ("dataset", "corpora"),
        ("sources",),
    ),
}


def rooms() -> list[str]:
    """The three packages side by side, a row of rooms on another."""
    parts = [
        box(20, 316, 940, "errors · command · saving · devices", PALE, 30),
        note(490, 370, "A room imports only from rooms below it or to its right."),
    ]
    for package, ((left, width, colour), *rows) in PACKAGES.items():
        parts.append(note(left + width // 2, 30, package, 15))
        for down, names in enumerate(rows):
            wide = (width - 8 * (len(names) - 1)) // len(names)
            for right, name in enumerate(names):
                parts.append(box(left + right * (wide + 8), 44 + 45 * down, wide, name, colour, 36))
    return parts


def step(x: int, y: int, name: str, caption: str = "") -> list[str]:
    """A room that the one above it calls, and what it gives."""
    parts = [arrow((x, y - 35), (x, y - 2)), box(x - 65, y, 130, name, BLUE)]
    return [*parts, *(note(x, y + 60 + 16 * i, t) for i, t in enumerate(caption.split("\n")))]


WALK_ENCODE = (
    900,
    260,
    [
        box(20, 15, 860, "model", BLUE),
        *step(150, 90, "audio", "1 samples at the model's rate,\nblock by block"),
        *step(450, 90, "autoencoders"),
        *step(450, 165, "networks", "2 latents, in blocks of frames"),
        *step(750, 90, "quantizers", "3 codes of the latents"),
    ],
)
WALK_TRAIN = (
    900,
    340,
    [
        box(20, 15, 860, "cli", BLUE),
        arrow((340, 55), (340, 88)),
        box(20, 90, 640, "training", BLUE),
        *step(125, 165, "audio", "1 crops of the clips"),
        *step(340, 165, "autoencoders"),
        *step(340, 240, "networks", "2 latents, audio, and the spectra\nthat losses compare"),
        *step(555, 165, "saving", "3 checkpoints"),
        *step(770, 90, "model", "4 the finished tokenizer"),
    ],
)

ROUTES = ("array", "file", "batch", "stream")
# Four ways in, one grid, one shape of products; and what of a tile is used.
EXACTNESS = (
    900,
    300,
    [
        *(box(20, 15 + 38 * i, 100, name, PALE, 30) for i, name in enumerate(ROUTES)),
        *(arrow((120, 30 + 38 * i), (178, 76 + 7 * i)) for i in range(len(ROUTES))),
        box(180, 52, 190, "tiles or steps on a grid\nfrom sample 0 on", BLUE, 70),
        arrow((370, 87), (418, 87)),
        box(420, 52, 200, "products of one shape,\none row at a time", BLUE, 70),
        arrow((620, 87), (718, 87)),
        cells(730, 67, ORANGE),
        note(770, 130, "latents, codes, samples: equal bits"),
        note(60, 231, "a tile"),
        box(120, 206, 160, "context", PALE),
        box(282, 206, 336, "the tile's frames", BLUE),
        box(620, 206, 160, "context", PALE),
        note(200, 268, "input only"),
        note(450, 268, "input, and the only output that is used"),
        note(700, 268, "input only"),
    ],
)


DIAGRAMS = {
    "pipeline": PIPELINE,
    "stages": STAGES,
    "rooms": (980, 385, rooms()),
    "walk-encode": WALK_ENCODE,
    "walk-train": WALK_TRAIN,
    "exactness": EXACTNESS,
}


def draw_diagram(path: Path, width: int, height: int, elements: list[str]) -> None:
    """Writes a diagram as SVG on a white card, which reads on light pages and on dark ones."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="14" text-anchor="middle">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        f' orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
    ]
    path.write_text("\n".join([*parts, *elements, "</svg>\n"]), encoding="utf-8")


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
        for name, diagram in DIAGRAMS.items():
            draw_diagram(options.out / f"{name}.svg", *diagram)
        draw_clip(options.out / "clip.png", tokenizer, clip[:, : 2 * rate])
        draw_residual(options.out / "residual.svg")
        draw_rate(options.out / "rate.svg", tokenizer, clip)
    print("\n".join(str(path) for path in sorted(options.out.iterdir())))


if __name__ == "__main__":
    main()
