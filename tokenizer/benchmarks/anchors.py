"""Quality beside other codecs' published reconstructions, at equal bit rates.

    python -m tokenizer.benchmarks.anchors FOLDER [--model M] [--domains speech] [--codecs DAC]

FOLDER holds originals and what other codecs made of them, listed in ``manifest.csv`` with the
columns ``path``, ``page`` and ``clip`` (which together say what belongs together), ``domain``
("speech" is also measured with PESQ and STOI), ``role`` ("original" or "reconstruction"),
``codec`` and ``kbps``, and with two that may be left out: ``frame_rate`` of the codec in Hz, for
`buzz` (default: ours), and ``gain_applied``, by which the file was scaled.

Our rate is that of the real code file, headers included. Our metrics at another codec's rate are
interpolated linearly between the two numbers of codebooks whose rates are nearest below and above
it. Where all codebooks need less, or one needs more, ours has the rate that the table shows.

All is measured at the original's rate, on the mean of the channels, after time alignment, and on
seconds 1 to 6 of clips longer than 6.2 s. A reconstruction that does not correlate with its
original keeps no phase to align: it gets no SI-SDR. Ours is rounded to 16 bits, as the files are.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from tqdm import tqdm

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.audio import open_audio
from tokenizer.benchmarks.command import benchmark_parser, write_figures
from tokenizer.errors import InputError, MissingFileError
from tokenizer.evaluation.coding import Coded, Condition, code_clip
from tokenizer.evaluation.evaluate import as_table, cell
from tokenizer.evaluation.metrics import quality
from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics, installed_metrics

# The columns, with the digits that are printed; and where lower is better.
COLUMNS = {
    "si_sdr": 2, "mel": 3, "stft": 2, "lsd": 2, "buzz": 2, "visqol": 2, "zimtohrli": 2, "pesq": 2,
    "stoi": 3,
}  # fmt: skip
LOWER_IS_BETTER = ("mel", "stft", "lsd", "buzz")
# The largest delay that is looked for, in seconds, and the least correlation that shows one.
MAX_LAG, MIN_PEAK = 0.25, 0.15


@dataclass(frozen=True)
class Recording:
    """A line of the manifest; an original has no codec and 0 kbit/s."""

    path: Path
    page: str
    clip: str
    domain: str
    codec: str
    kbps: float
    frame_rate: float | None
    gain: float

    @classmethod
    def parse(cls, folder: Path, line: Mapping[str, str]) -> Recording:
        """Reads a line of the manifest of a folder."""
        try:
            original = line["role"] == "original"
            codec, kbps = ("", 0.0) if original else (line["codec"], float(line["kbps"]))
            frame_rate = float(line.get("frame_rate") or 0) or None
            gain = float(line.get("gain_applied") or 1)
            place = (folder / line["path"], line["page"], line["clip"], line["domain"])
            return cls(*place, codec, kbps, frame_rate, gain)
        except (KeyError, ValueError) as error:
            reason = f"Cannot read {dict(line)} of {folder}/manifest.csv: {error}."
            raise InputError(reason) from None

    def read(self, rate: int) -> Float[np.ndarray, " N"]:
        """Its samples at ``rate`` Hz, the mean of its channels, without the gain."""
        return open_audio(self.path, target_rate=rate, downmix=True).read()[0] / self.gain


def read_manifest(
    folder: Path, domains: Sequence[str] = (), codecs: Sequence[str] = (), limit: int | None = None
) -> list[tuple[Recording, list[Recording]]]:
    """Originals, at most ``limit`` of each page and domain, each with its reconstructions.

    ``codecs`` are beginnings or patterns of names; by default, all domains and codecs are used.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise MissingFileError(f"No {path}: `anchors` needs a list of originals and codecs.")
    with path.open(newline="", encoding="utf-8") as file:
        recordings = [Recording.parse(folder, line) for line in csv.DictReader(file)]
    originals = {(r.page, r.clip): r for r in recordings if not r.codec}
    reconstructions: dict[tuple[str, str], list[Recording]] = {key: [] for key in originals}
    for recording in (r for r in recordings if r.codec):
        if (key := (recording.page, recording.clip)) not in originals:
            raise InputError(f"{path} has no original of {recording.path}.")
        if _is_chosen(recording.codec, codecs):
            reconstructions[key].append(recording)
    pairs, counts = [], Counter[tuple[str, str]]()
    for key, original in originals.items():
        kind = (original.page, original.domain)
        if domains and original.domain not in domains:
            continue
        if not reconstructions[key] or counts.get(kind, 0) == limit:
            continue
        counts[kind] += 1
        pairs.append((original, reconstructions[key]))
    if not pairs:
        raise InputError(f"{path} has no clip of domains {domains} and codecs {codecs}.")
    return pairs


def _is_chosen(codec: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(codec.lower(), f"{p.lower()}*") for p in patterns)


def align(
    estimate: Float[np.ndarray, " M"], target: Float[np.ndarray, " N"], rate: int
) -> tuple[Float[np.ndarray, " N"], float, float]:
    """Shifts a signal onto another one, by the maximum of their cross-correlation.

    Returns the estimate at the target's length, the delay in samples that was removed (a parabola
    through the maximum gives its fraction), and the normalised maximum. A maximum under `MIN_PEAK`
    is no delay, and none is removed.
    """
    size = 1 << (len(target) + len(estimate) - 1).bit_length()
    spectrum = np.fft.rfft(estimate.astype(np.float64), size)
    correlation = np.fft.irfft(spectrum * np.fft.rfft(target.astype(np.float64), size).conj(), size)
    most = min(round(MAX_LAG * rate), size // 2 - 1)
    near = np.concatenate([correlation[-most:], correlation[: most + 1]])
    top = int(np.argmax(near))
    norm = float(np.linalg.norm(target) * np.linalg.norm(estimate))
    peak = float(near[top]) / max(norm, 1e-9)
    lag = 0.0
    if peak >= MIN_PEAK:
        lag = float(top - most)
        left, middle, right = near[[max(top - 1, 0), top, min(top + 1, len(near) - 1)]]
        curvature = left - 2 * middle + right
        fraction = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
        # Less than a tenth of a sample is within the error of the parabola.
        lag += float(fraction) if abs(fraction) >= 0.1 else 0.0
    if lag:
        turns = np.exp(2j * np.pi * np.arange(size // 2 + 1) * lag / size)
        shifted = np.fft.irfft(spectrum * turns, size)
    else:
        shifted = np.pad(estimate, (0, max(0, len(target) - len(estimate))))
    return shifted[: len(target)].astype(np.float32), lag, peak


class Scores:
    """Measures what codecs, and our tokenizer, made of one original."""

    def __init__(
        self, original: Recording, tokenizer: LatentTokenizer, perceptual: PerceptualMetrics
    ) -> None:
        self.original, self.tokenizer, self.perceptual = original, tokenizer, perceptual
        self.rate = soundfile.info(original.path).samplerate
        self.target = original.read(self.rate)
        self._input = soxr.resample(self.target, self.rate, tokenizer.sampling_rate)[None]
        self._coded: dict[int, Coded] = {}
        self._measured: dict[int, dict[str, float]] = {}

    def measure(
        self, audio: Float[np.ndarray, " M"], frame_rate: float | None
    ) -> tuple[dict[str, float], float, float]:
        """The metrics of a reconstruction at the original's rate, its delay in ms and the peak."""
        aligned, lag, peak = align(audio, self.target, self.rate)
        long = len(self.target) > 6.2 * self.rate
        part = slice(self.rate, 6 * self.rate) if long else slice(None)
        estimate, target = aligned[None, part], self.target[None, part]
        hop = self.rate / (frame_rate or self.tokenizer.frame_rate)
        values = quality(estimate, target, self.rate, hop_length=hop)
        values |= self.perceptual(estimate, target, self.rate, self.original.domain)
        return values, 1000 * lag / self.rate, peak

    def kbps(self, n_codebooks: int) -> float:
        """The rate of our code file."""
        if n_codebooks not in self._coded:
            condition = Condition(n_codebooks, self.tokenizer.codes_decoder)
            self._coded[n_codebooks] = code_clip(self.tokenizer, self._input, condition)
        return self._coded[n_codebooks].kbps

    def ours(self, n_codebooks: int) -> dict[str, float]:
        """The metrics of our reconstruction, and its ``kbps``."""
        if n_codebooks not in self._measured:
            kbps = self.kbps(n_codebooks)
            # Theirs are files of 16 bits, whose noise fills bands that are empty otherwise.
            audio = np.rint(self._coded[n_codebooks].audio[0] * 2**15) / np.float32(2**15)
            audio = soxr.resample(audio, self.tokenizer.sampling_rate, self.rate)
            values, _, _ = self.measure(audio, None)
            self._measured[n_codebooks] = values | {"kbps": kbps}
        return self._measured[n_codebooks]

    def ours_at(self, kbps: float) -> tuple[dict[str, float], list[int]]:
        """Our metrics at a rate, and the numbers of codebooks that they are from."""
        most = self.tokenizer.num_codebooks
        # The search begins at the rate without headers and entropy coding.
        n = sum(self.tokenizer.bitrate(n) <= 1000 * kbps for n in range(2, most + 1)) + 1
        while n > 1 and self.kbps(n) > kbps:
            n -= 1
        while n < most and self.kbps(n + 1) <= kbps:
            n += 1
        below = self.ours(n)
        if n == most or below["kbps"] >= kbps:
            return below, [n]
        above = self.ours(n + 1)
        share = (kbps - below["kbps"]) / (above["kbps"] - below["kbps"])
        both = [name for name in below if name in above]
        mean = {name: below[name] + share * (above[name] - below[name]) for name in both}
        return mean, [n, n + 1]


def compare(
    tokenizer: LatentTokenizer,
    pairs: Sequence[tuple[Recording, Sequence[Recording]]],
    perceptual: PerceptualMetrics,
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One line for each reconstruction, with its metrics and ours at its rate."""
    lines = []
    total = sum(len(each) for _, each in pairs)
    with tqdm(total=total, unit="sound", disable=not progress) as bar:
        for original, reconstructions in pairs:
            scores = Scores(original, tokenizer, perceptual)
            for other in reconstructions:
                theirs, lag, peak = scores.measure(other.read(scores.rate), other.frame_rate)
                if peak < MIN_PEAK:
                    del theirs["si_sdr"]
                ours, codebooks = scores.ours_at(other.kbps)
                line = {"page": original.page, "domain": original.domain, "clip": original.clip}
                line |= {"codec": other.codec, "lag_ms": lag, "correlation": peak}
                line |= {"theirs": theirs | {"kbps": other.kbps}, "ours": ours}
                lines.append(line | {"codebooks": codebooks})
                bar.update()
    return lines


def summarize(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over clips for each domain, codec and rate, of the metrics that both sides have.

    A codec of variable rate has other rates in each clip of a page: the lowest of each clip are
    one group, the second lowest the next.
    """
    clips: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for line in lines:
        each = clips.setdefault((line["domain"], line["codec"], line["page"]), {})
        each.setdefault(line["clip"], []).append(line)
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for (domain, codec, page), each in clips.items():
        rates = {line["theirs"]["kbps"] for members in each.values() for line in members}
        fixed = len(rates) <= max(len(members) for members in each.values())
        for members in each.values():
            members.sort(key=lambda line: line["theirs"]["kbps"])
            for rank, line in enumerate(members):
                rate = f"{line['theirs']['kbps']:07.3f}" if fixed else f"{page}, {rank}"
                groups.setdefault((domain, codec, rate), []).append(line)
    results = []
    for (domain, codec, _), members in sorted(groups.items()):
        result: dict[str, Any] = {"domain": domain, "codec": codec, "clips": len(members)}
        result["codebooks"] = sorted({n for line in members for n in line["codebooks"]})
        result |= {"theirs": {}, "ours": {}}
        for name in ("kbps", *COLUMNS):
            both = [x for x in members if name in x["theirs"] and name in x["ours"]]
            for side in ("theirs", "ours"):
                if both:
                    result[side][name] = float(np.mean([line[side][name] for line in both]))
        result["ours_better_by"] = {
            name: (-1 if name in LOWER_IS_BETTER else 1) * (ours - result["theirs"][name])
            for name, ours in result["ours"].items()
            if name != "kbps"
        }
        results.append(result)
    return results


def as_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table for each domain, and how often ours is better."""
    names = [name for name in COLUMNS if any(name in result["ours"] for result in results)]
    parts = []
    for domain in dict.fromkeys(result["domain"] for result in results):
        rows, wins = [], dict.fromkeys(names, 0)
        group = [result for result in results if result["domain"] == domain]
        for result in group:
            books = result["codebooks"]
            span = f"K = {books[0]}" if len(books) == 1 else f"K = {books[0]} to {books[-1]}"
            for title, side in ((result["codec"], "theirs"), (f"ours, {span}", "ours")):
                values = result[side]
                figures = (cell(values, name, f".{COLUMNS[name]}f") for name in names)
                rows.append([title, str(result["clips"]), f"{values['kbps']:.2f}", *figures])
            better = result["ours_better_by"]
            figures = (cell(better, name, f"+.{COLUMNS[name]}f") for name in names)
            rows.append(["*ours is better by*", "", "", *figures])
            for name in names:
                wins[name] += better.get(name, 0) > 0
        count = {name: sum(name in result["ours"] for result in group) for name in names}
        ratio = (f"{wins[name]} of {count[name]}" if count[name] else "" for name in names)
        rows.append(["**ours is better**", "", "", *ratio])
        parts.append(f"**{domain}**\n\n{as_table(rows, ['codec', 'clips', 'kbit/s', *names])}")
    return "\n\n".join(parts)


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = benchmark_parser(__doc__, "--model", "--json")
    parser.add_argument("folder", type=Path, help="holds manifest.csv and the audio")
    parser.add_argument("--domains", nargs="+", help="e.g. speech; default: all")
    parser.add_argument("--codecs", nargs="+", help="beginnings of codecs' names; default: all")
    parser.add_argument("--limit", type=int, help="originals of each page and domain; default: all")
    parser.add_argument(
        "--metrics", nargs="*", choices=METRICS, help="perceptual; default: all that are installed"
    )
    options = parser.parse_args()
    names = installed_metrics() if options.metrics is None else options.metrics
    if absent := sorted(set(METRICS) - set(names)):
        print(f"Without {', '.join(absent)}.\n")
    chosen = (options.domains or (), options.codecs or (), options.limit)
    pairs = read_manifest(options.folder, *chosen)
    perceptual = PerceptualMetrics(names, speech_clips="speech")
    lines = compare(load_tokenizer(options.model), pairs, perceptual)
    results = summarize(lines)
    print(as_markdown(results))
    write_figures(options.json, {"means": results, "clips": lines})


if __name__ == "__main__":
    main()
