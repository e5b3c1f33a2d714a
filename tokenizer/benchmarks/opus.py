"""Quality beside Opus at equal bit rates, on the same clips in one run.

    python -m tokenizer.benchmarks.opus CLIPS [--bitrates 24 16 10] [--metrics visqol zimtohrli]

Opus is what `ffmpeg` encodes with libopus (variable rate, "audio" application, complexity 10).
Both rates are those of the real files, containers included; Opus' is tuned clip by clip to spend
no less than ours. Channels are averaged into one first, as that is what our bit rates are for.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.audio import open_audio
from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.errors import StateError
from tokenizer.evaluation.coding import Condition, code_clip
from tokenizer.evaluation.metrics import quality
from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics
from tokenizer.training.clips import Clip, scan


def opus(audio: np.ndarray, rate: int, bitrate: float) -> tuple[np.ndarray, int]:
    """Audio ``[1, N]`` through Opus at about ``bitrate`` bit/s, and the file's size in bytes."""
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y"]
    with tempfile.TemporaryDirectory() as folder:
        source, coded, back = (Path(folder) / name for name in ("a.wav", "a.opus", "b.wav"))
        soundfile.write(source, audio.T, rate, subtype="FLOAT")
        encode = ["-c:a", "libopus", "-b:a", str(round(bitrate)), "-application", "audio"]
        try:
            subprocess.run([*command, "-i", source, *encode, coded], check=True)
            decode = ["-ar", str(rate), "-c:a", "pcm_f32le"]
            subprocess.run([*command, "-i", coded, *decode, back], check=True)
        except FileNotFoundError:
            raise StateError("This benchmark needs ffmpeg with libopus on the PATH.") from None
        decoded, _ = soundfile.read(back, dtype="float32", always_2d=True)
        size = coded.stat().st_size
    # Opus works at 48 kHz: resampling there and back may end a sample early or late.
    decoded = decoded.T[:, : audio.shape[-1]]
    return np.pad(decoded, ((0, 0), (0, audio.shape[-1] - decoded.shape[-1]))), size


def opus_of_size(audio: np.ndarray, rate: int, min_bytes: int) -> tuple[np.ndarray, int]:
    """Opus at the lowest setting of a few whose file is no smaller than ``min_bytes`` bytes."""
    nominal = 8 * min_bytes * rate / audio.shape[-1]
    for factor in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0):
        decoded, size = opus(audio, rate, max(nominal * factor, 6000))
        if size >= min_bytes:
            break
    return decoded, size


def compare(
    tokenizer: LatentTokenizer, clips: list[Clip], bitrates: list[float], metrics: PerceptualMetrics
) -> list[dict[str, float | str]]:
    """One line a codec and rate: means over the clips."""
    rate = tokenizer.sampling_rate
    results: dict[tuple[float, str], list[dict[str, float]]] = {}
    for clip in tqdm(clips, unit="clip"):
        original = open_audio(clip.audio, target_rate=rate).read().mean(0, keepdims=True)
        seconds = original.shape[-1] / rate
        for bitrate in bitrates:
            n = tokenizer.codebooks_for(1000 * bitrate)
            ours = code_clip(tokenizer, original, Condition(n, tokenizer.codes_decoder))
            coded = {
                "Latent Tokenizer": (ours.audio, ours.num_bytes),
                "Opus": opus_of_size(original, rate, ours.num_bytes),
            }
            for codec, (decoded, size) in coded.items():
                measured = quality(decoded, original, rate)
                measured |= metrics(decoded, original, rate, clip.name)
                measured["kbps"] = 8e-3 * size / seconds
                results.setdefault((bitrate, codec), []).append(measured)
    lines, names = [], ("kbps", "si_sdr", "mel", *metrics.names)
    for (bitrate, codec), values in results.items():
        means = {n: float(np.mean([v[n] for v in values if n in v])) for n in names}
        lines.append({"codec": codec, "nominal": bitrate} | means)
    return lines


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__, "--model", "--json")
    parser.add_argument("audio", help="folder of clips")
    parser.add_argument(
        "--bitrates", type=float, nargs="+", default=[24.0, 16.0, 10.0], help="ours, in kbit/s"
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=METRICS[:2], help="perceptual metrics"
    )
    parser.add_argument("--speech-clips", default="*", help="PESQ and STOI for these paths only")
    options = parser.parse_args()
    metrics = PerceptualMetrics(options.metrics, options.speech_clips)
    lines = compare(load_tokenizer(options.model), scan(options.audio), options.bitrates, metrics)
    print(table(lines))
    write_figures(options.json, lines)


if __name__ == "__main__":
    main()
