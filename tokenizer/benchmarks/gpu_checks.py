"""The checks of `tokenizer.benchmarks.gpu`; each returns figures, and "failed" if one is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import torch

import tokenizer
from tokenizer import load_tokenizer
from tokenizer.benchmarks.counting import launches
from tokenizer.benchmarks.launches import batch_launches, narrow_model, together
from tokenizer.benchmarks.scaling import make_clips
from tokenizer.evaluation.coding import best_of
from tokenizer.networks.packing import Windows

RATE = 44_100

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Where and how thoroughly to check.

    Attributes:
        device: Name of the torch device.
        quick: Whether tiny sizes do.
        audio: Folder to train on; None makes noise.
    """

    device: str
    quick: bool
    audio: Path | None

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds of a call, the best of some."""
        return best_of([call], 1 if self.quick else 5, self.device)[0]

    def cost(self, call: Callable[[], object], amount: float | int) -> Figures:
        """How much of something a call does a second, its kernels and waits."""
        rate = amount / self.timed(call)
        return {"rate": round(rate, 2), **asdict(launches(call, self.device))}

    def model(self, beam_width: int = 4) -> Any:
        """The bundled tokenizer on the device, with the route of devices on a CPU, too."""
        model = self.reference(beam_width).to(self.device)
        model.windows = Windows(frames=128, count=2) if self.quick else Windows()
        return model

    def reference(self, beam_width: int) -> Any:
        """The bundled tokenizer on the CPU, signals in turn."""
        model: Any = load_tokenizer()
        model.quantizer.beam_width = beam_width
        return model

    def clip(self, seconds: float | int, seed: int = 0) -> Figures:
        """Music of some length, with another beginning for each seed."""
        path = Path(tokenizer.__file__).parent / "assets" / "example.flac"
        wave = soundfile.read(path, dtype="float32", always_2d=True)[0][:, 0]
        repeated = np.tile(wave, 1 + int(seconds * RATE / len(wave)))
        clip = np.roll(repeated, -7919 * seed)[: int(seconds * RATE)]
        return {"array": clip, "sampling_rate": RATE}


def triton_kernel(setup: Setup) -> Figures:
    """The fused search beside a product and an argmax: equal but for ties, and faster."""
    if not setup.device.startswith("cuda"):
        return {"skipped": "the kernel is for GPUs"}
    from tokenizer.quantizers.triton_nearest import nearest_fused

    figures: Figures = {}
    vectors = 2**14 if setup.quick else 2**18
    for dim in (8, 64, 112, 192, 300, 512):
        x, keys = (torch.randn(n, dim, device=setup.device) for n in (vectors, 1024))
        bias = -keys.square().sum(1) / 2
        right = (x.double() @ keys.double().T + bias.double()).argmax(1)
        fused = nearest_fused(x, keys, bias)[0]
        seconds = setup.timed(lambda: nearest_fused(x, keys, bias))  # noqa: B023
        plain = setup.timed(lambda: torch.addmm(bias, x, keys.T).argmax(1))  # noqa: B023
        equal = float((fused == right).double().mean())
        figures[str(dim)] = {"equal": equal, "times as fast as a product": plain / seconds}
    if min(line["equal"] for line in figures.values()) < 0.9999:
        figures["failed"] = "The kernel chooses other entries."
    return figures


_SECOND_GPU = """
import torch
from tokenizer.quantizers.kmeans import nearest
x = torch.randn(999, 64, device="cuda:1")
assert nearest(x, x[:70])[:70].tolist() == list(range(70))
"""


def device_guard(setup: Setup) -> Figures:
    """A search on the second GPU while the first is the current one, in a process of its own."""
    if not setup.device.startswith("cuda") or torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    done = _python("-c", _SECOND_GPU)
    return {"failed": done.stderr[-300:]} if done.returncode else {"equal": True}


def codec_equality(setup: Setup) -> Figures:
    """Codes here and on a CPU, in a batch and alone, in a stream and whole, with TF32 allowed."""
    clips = [setup.clip(1 if setup.quick else 7 + seed, seed) for seed in range(3)]
    figures: Figures = {}
    for width in (1, 4):
        here, cpu = setup.model(width), setup.reference(width)
        alone = [here.encode_codes(clip, gain=0.1)["codes"] for clip in clips]
        on_cpu = [cpu.encode_codes(clip, gain=0.1)["codes"] for clip in clips]
        batch = here.encode_codes(clips, gain=0.1)["codes"]
        stream = here.stream_encoder(gain=0.1)
        parts = [stream.push(part) for part in np.array_split(clips[0]["array"], 9)]
        streamed = np.concatenate([*parts, stream.finish()], axis=1)[0]
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        tf32 = here.encode_codes(clips[0], gain=0.1)["codes"]
        torch.set_float32_matmul_precision(before)
        figures[f"beam {width}"] = {
            "cpu": float(np.mean(np.concatenate(alone) == np.concatenate(on_cpu))),
            "batch": all(map(np.array_equal, alone, batch)),
            "stream": float(np.mean(streamed == alone[0])),
            "TF32 allowed": np.array_equal(tf32, alone[0]),
        }
    if any(min(line.values()) < 0.9999 for line in figures.values()):
        figures["failed"] = "Codes differ."
    return figures


def fixed_shape_rows(setup: Setup) -> Figures:
    """Whether a row's bits depend on its place in a product, and which smaller products agree."""
    figures: Figures = {}
    rows = 2048 if setup.quick else 2**14
    for inner, outer in ((882, 256), (256, 768), (768, 256), (114, 1024)):
        x = torch.randn(rows, inner, device=setup.device)
        weight = torch.randn(inner, outer, device=setup.device)
        whole = x @ weight
        order = torch.randperm(rows, device=setup.device)
        line: Figures = {"any place": torch.equal(x[order] @ weight, whole[order])}
        for size in (1024, 2048, 4096, 8192):
            if size < rows:
                parts = [part.clone() @ weight for part in x.split(size)]
                line[str(size)] = torch.equal(torch.cat(parts), whole)
        figures[f"{inner} x {outer}"] = line
    return figures


def bfloat16_networks(setup: Setup) -> Figures:
    """How many codes are equal with the encoder's networks in bfloat16, and how fast that is."""
    model, clip = setup.model(), setup.clip(1 if setup.quick else 30)
    codes = model.encode_codes(clip)["codes"]
    plain = setup.timed(lambda: model.encode_latents(clip))
    model.network_dtype = torch.bfloat16
    equal = float(np.mean(model.encode_codes(clip)["codes"] == codes))
    seconds = setup.timed(lambda: model.encode_latents(clip))
    return {"equal": equal, "times as fast": plain / seconds}


def launches_counted(setup: Setup) -> Figures:
    """Kernels and waits on an emulated device, which those of a real one should be near."""
    clips, seconds = (2, 0.5) if setup.quick else (12, 10)
    found = batch_launches(narrow_model(), clips, seconds, together)
    return {name: asdict(launched) for name, launched in found.items()}


def codec_speed(setup: Setup) -> Figures:
    """Times real time, kernels and waits; of single clips, a list, and the networks alone."""
    figures: Figures = {}
    for seconds in (1,) if setup.quick else (10, 30):
        clip = setup.clip(seconds)
        for width in (1, 4):
            model = setup.model(width)
            encode = lambda: model.encode_codes(clip)  # noqa: E731, B023
            figures[f"encode {seconds} s, beam {width}"] = setup.cost(encode, seconds)
        row, latents = model.encode_codes(clip), model.encode_latents(clip)
        calls = {
            "encode latents": lambda: model.encode_latents(clip),  # noqa: B023
            "decode": lambda: model.decode_codes(row),  # noqa: B023
            "decode latents": lambda: model.decode_latents(latents),  # noqa: B023
        }
        for name, call in calls.items():
            figures[f"{name} {seconds} s"] = setup.cost(call, seconds)
    model = setup.model()
    count, seconds = (2, 1) if setup.quick else (16, 10)
    clips = [setup.clip(seconds, seed) for seed in range(count)]
    figures["encode a list"] = setup.cost(lambda: model.encode_codes(clips), count * seconds)
    figures["latents of a list"] = setup.cost(lambda: model.encode_latents(clips), count * seconds)
    rows = model.encode_codes(clips)
    figures["decode a list"] = setup.cost(lambda: model.decode_codes(rows), count * seconds)
    waves = torch.from_numpy(np.stack([clip["array"] for clip in clips]))[:, None].to(setup.device)
    with torch.inference_mode():
        z = model.encode(waves).latents
        frames = z[:, : model.coded_dim].transpose(1, 2).reshape(-1, model.coded_dim).contiguous()
        calls = {
            "encoder": lambda: model.encode(waves),
            "decoder": lambda: model.decode(z),
            "search": lambda: model.quantizer.encode(frames),
        }
        for name, call in calls.items():
            figures[f"{name}, one batch"] = setup.cost(call, count * seconds)
    return figures


def kmeans_twice(setup: Setup) -> Figures:
    """Seconds, and whether a seed gives one codebook."""
    from tokenizer.quantizers.kmeans import kmeans

    points = torch.randn(5000 if setup.quick else 1_600_000, 112, device=setup.device)

    def fit() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return kmeans(points, 64 if setup.quick else 1024, generator=generator, iterations=10)

    seconds = best_of([fit], 1, setup.device)[0]
    return {"fit seconds": seconds, "equal": torch.equal(fit(), fit())}


def training_speed(setup: Setup) -> Figures:
    """Steps a second of ``latok train`` by workers, batch, precision and discriminators."""
    if setup.quick:
        trials = {"tiny": ["--preset", "tiny", "--batch-size", 2, "--num-workers", 0]}
    else:
        trials = {
            f"workers {workers}, batch {batch}": ["--num-workers", workers, "--batch-size", batch]
            for workers in (1, 4, 12)
            for batch in (12, 64)
        }
        many = ["--num-workers", 12, "--batch-size", 64, "--mixed-precision"]
        adversarial = ["--adversarial-weight", 0.2, "--feature-weight", 0.2]
        trials["bf16"] = [*many, "bf16"]
        trials |= {f"discriminators, {p}": [*many, p, *adversarial] for p in ("no", "bf16")}
    steps = 4 if setup.quick else 120
    common = ["--steps", steps, "--log-every", steps // 2, "--validate-every", 0]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        audio = setup.audio or Path(folder) / "audio"
        if setup.audio is None:
            make_clips(audio)
        for number, (name, words) in enumerate(trials.items()):
            out = Path(folder) / str(number)
            train = ["train", audio, "--out", out, *common, *words]
            done = _python("-m", "tokenizer", *train, on_cpu=setup.device == "cpu")
            if done.returncode:
                figures[name] = figures["failed"] = done.stderr[-300:]
                continue
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            last = [line for line in log if "train/steps_per_second" in line][-1]
            rate = round(last["train/steps_per_second"], 3)
            figures[name] = {"steps/s": rate, "loss": last["train/loss"]}
    return figures


def discriminators_layout(setup: Setup) -> Figures:
    """Seconds of a discriminator's step by precision, memory layout and ``cudnn.benchmark``."""
    from tokenizer.training.adversarial import Discriminators

    figures: Figures = {}
    shape, channels = ((2, 1, 8820), 4) if setup.quick else ((32, 1, 66_150), 32)
    audio = 0.1 * torch.randn(shape, device=setup.device)
    kind = torch.device(setup.device).type
    before = torch.backends.cudnn.benchmark
    for mixed, layout in (
        (False, torch.contiguous_format),
        (True, torch.contiguous_format),
        (True, torch.channels_last),
    ):
        for benchmark in (False,) if setup.quick else (False, True):
            torch.backends.cudnn.benchmark = benchmark
            model = Discriminators(channels=channels).to(setup.device)
            model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

            def step() -> None:
                with torch.autocast(kind, torch.bfloat16, enabled=mixed):  # noqa: B023
                    scores = [maps[-1].float().square().mean() for maps in model(audio)]  # noqa: B023
                torch.stack(scores).sum().backward()

            name = ("bf16" if mixed else "float32") + f", {str(layout).removeprefix('torch.')}"
            figures[f"{name}, benchmark {benchmark}"] = setup.timed(step)
    torch.backends.cudnn.benchmark = before
    return figures


def language_model(setup: Setup) -> Figures:
    """What the benchmark of the other package's language model prints."""
    small = ["--frames", 8, "--width", 32, "--depth", 2, "--heads", 2, "--repetitions", 1]
    words = ["--device", setup.device, *(small if setup.quick else [])]
    return _printed("generative", "lm_speed", *words)


def preparation(setup: Setup) -> Figures:
    """What the benchmark of dataset preparation prints for one device, and for all."""
    devices = torch.cuda.device_count() if setup.device.startswith("cuda") else 1
    figures: Figures = {}
    for count in sorted({1, devices}):
        minutes = 0.2 if setup.quick else 120 * count
        words = ["--num-proc", count, "--minutes", minutes, "--device", setup.device]
        figures[f"{count} devices"] = line = _printed("datasets_scripts", "throughput", *words)
        if "failed" in line:
            figures["failed"] = line["failed"]
    return figures


CHECKS: dict[str, Callable[[Setup], Figures]] = {
    check.__name__: check
    for check in (
        triton_kernel,
        device_guard,
        codec_equality,
        fixed_shape_rows,
        bfloat16_networks,
        launches_counted,
        codec_speed,
        kmeans_twice,
        training_speed,
        discriminators_layout,
        language_model,
        preparation,
    )
}


def _python(*words: object, on_cpu: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {})
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _printed(package: str, benchmark: str, *words: object) -> Figures:
    """The lines that a benchmark of another package prints in a process of its own."""
    if importlib.util.find_spec(package) is None:
        return {"skipped": f"{package} is not installed"}
    done = _python("-m", f"{package}.benchmarks.{benchmark}", *words)
    return (
        {"failed": done.stderr[-300:]} if done.returncode else {"lines": done.stdout.splitlines()}
    )
