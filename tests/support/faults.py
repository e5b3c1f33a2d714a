"""Faults injected into every long operation: ``python tests/support/faults.py --kills 50``.

Each operation runs in a forked process, as from the command line, on tiny models and a few seconds
of audio. An audit hook counts what it does to files in its folder, so that a fault can be placed
before any one of these steps:

    kill        SIGKILL (the power goes)                      then it is started again
    interrupt   SIGINT (Ctrl-C)                               then it is started again
    disk full   everything that writes fails with ENOSPC      then there is room again
    removed     a file of the input vanishes                  then it comes back
    worker      a worker process is killed                    then it is started again

and, once each, a file where the output's folder should be, a read-only or really full file system
(where this may mount one), and a reader of the output that has gone.

After every fault all files under their final names must be whole, and after the next start the
result must be what it is without a fault, bit for bit. Whatever is not is counted as a loss.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - loaded once, here, and not in every process
import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch.utils.tensorboard  # noqa: F401
from libraries import saved
from models import RATE, make_autoencoder, make_tokenizer, tone
from prepared_data import write_prepared
from safetensors import safe_open
from tqdm import tqdm

import datasets_scripts.preparation.prepare  # noqa: F401
import tokenizer.evaluation.comparison
import tokenizer.evaluation.evaluate  # noqa: F401
from datasets_scripts.cli import main as prepare
from generative.cli import main as generative
from tokenizer.cli import main as latok
from tokenizer.codefile import CodeReader
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training import reconstruction
from tokenizer.transcoding.files import encode_file

# Seconds after which an operation hangs.
PATIENCE = 600
# What an operation may do to files, as Python tells its audit hooks.
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate")
LOOP = (
    "--steps", "3", "--batch-size", "1", "--crop-seconds", "0.2", "--warmup-steps", "1",
    "--validate-every", "9", "--checkpoint-seconds", "0", "--log-every", "1", "--held-out", "1",
    "--mel-scales-per-step", "1", "--lowpass-range", "500", "3500",
)  # fmt: skip
SIZES = (
    "--preset", "tiny", "--sampling-rate", "8000", "--hop-length", "80", "--latent-dim", "8",
    "--encoder-width", "8", "--encoder-depth", "1", "--decoder-width", "8", "--decoder-depth", "1",
)  # fmt: skip


@dataclass
class Operation:
    """A command, and how to look at what it leaves.

    Attributes:
        name: In the table.
        command: "latok", "datasets_scripts" or "generative".
        arguments: For a folder that has ``audio/`` and ``model/``; outputs go to ``out``.
        results: What is compared with a run without faults: names of files in the folder.
        ignored: Keys of JSON results that are times.
        worker: Arguments that make it use another process.
        make: Puts what it needs besides audio and models into the folder, under ``more/``.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None


def _make_dac(place: Path) -> None:
    saved(place / "more", "dac")


def _make_data(place: Path) -> None:
    if not (place / "more/data").exists():
        write_prepared(place / "more/data", make_tokenizer())


def _make_run(place: Path) -> None:
    _make_data(place)
    if not (place / "more/lm").exists():
        with contextlib.chdir(place):
            generative([*_LM, "--out", "more/lm"])


_SMALL = (
    "more/data", "--tokenizer", "model", "--held-out", "0.2", "--steps", "2", "--batch-size", "4",
    "--crop-frames", "16", "--warmup-steps", "1", "--num-workers", "0", "--sample-every", "0",
    "--width", "32", "--depth", "1", "--heads", "2",
)  # fmt: skip
_LM = ("train-lm", *_SMALL, "--codebooks", "2")
_DIFFUSION = ("train-diffusion", *_SMALL)

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "train", "latok",
            ("train", "audio", "--out", "out", "--num-workers", "0", *LOOP, *SIZES),
            ("out/model/config.json", "out/model/model.safetensors"), (),
            ("--num-workers", "1"),
        ),
        Operation(
            "fit", "latok",
            ("fit", "raw", "audio", "--out", "out", "--codebooks", "2", "--codebook-size", "8",
             "--segment-seconds", "0.5"),
            ("out/model/config.json", "out/model/model.safetensors"),
        ),
        Operation(
            "finetune", "latok",
            ("finetune", "model", "audio", "--out", "out", "--num-workers", "0", *LOOP),
            ("out/model/config.json", "out/model/model.safetensors"), (),
            ("--num-workers", "1"),
        ),
        Operation(
            "encode", "latok", ("encode", "audio/0.wav", "out.ltk", "--model", "model"),
            ("out.ltk",),
        ),
        Operation(
            "decode", "latok", ("decode", "coded.ltk", "out.wav", "--model", "model"),
            ("out.wav",),
        ),
        *(
            Operation(
                f"decode to {kind}", "latok",
                ("decode", "coded.ltk", f"out.{kind}", "--model", "model"), (f"out.{kind}",),
            )
            for kind in ("flac", "ogg", "opus", "mp3")
        ),
        Operation(
            "evaluate", "latok",
            ("evaluate", "audio", "--model", "model", "--bitrates", "0.5", "--json", "out.json"),
            ("out.json",), ("encode_x", "decode_x"),
        ),
        Operation("export", "latok", ("export", "model", "out"), ("out/model.safetensors",)),
        Operation(
            "report", "latok",
            ("report", "audio", "--out", "out", "--model", "model", "--bitrates", "0.5", "0.9",
             "--focus", "0.5"),
            ("out/report.json",), ("encode_x", "decode_x", "bytes"),
        ),
        Operation(
            "prepare", "datasets_scripts",
            ("prepare", "audiofolder", "audio", "--out", "out", "--codes", "--tokenizer", "model",
             "--clips-per-shard", "2"),
            ("out/manifest.json", "out/statistics.json", "out/data/train-00000.parquet",
             "out/data/train-00001.parquet"), (),
            ("--num-proc", "2"),
        ),
        Operation(
            "wrap", "latok", ("wrap", "more/dac", "--out", "out"),
            ("out/config.json", "out/model.safetensors"), make=_make_dac,
        ),
        Operation(
            "export a dataset", "datasets_scripts", ("export", "more/data", "out"),
            ("out/dataset_dict.json", "out/train/data-00000-of-00001.arrow"), make=_make_data,
        ),
        Operation(
            "train-lm", "generative", (*_LM, "--out", "out"),
            ("out/model/config.json", "out/model/model.safetensors"), make=_make_data,
        ),
        Operation(
            "train-diffusion", "generative", (*_DIFFUSION, "--out", "out"),
            ("out/model/config.json", "out/model/diffusion_pytorch_model.safetensors"),
            make=_make_data,
        ),
        Operation(
            "sample", "generative",
            ("sample", "more/lm", "--tokenizer", "model", "--seconds", "0.3", "--seed", "1",
             "--out", "out"),
            ("out/samples.json",), make=_make_run,
        ),
        Operation(
            "compare", "latok",
            ("compare", "raw", "audio", "audio", "--out", "out", "--quantizers", "rvq",
             "rvq:standardization=channel",
             "--codebooks", "1", "--codebook-size", "8", "--segment-seconds", "0.5",
             "--max-frames", "400"),
            ("out/comparison.json",),
            ("seconds", "peak_mib", "encode_x", "decode_x", "encode_seconds", "decode_seconds",
             "encode_vectors_per_second", "decode_vectors_per_second"),
        ),
    )
}  # fmt: skip


@dataclass
class Tally:
    """A row of the table.

    Attributes:
        tries: How often the fault was injected.
        losses: What went wrong, a line each.
    """

    tries: int = 0
    losses: list[str] = field(default_factory=list)


# A place to work in


def make_place(folder: Path) -> None:
    """Audio and models, the same each time."""
    (folder / "audio").mkdir(parents=True)
    for i in range(4):
        soundfile.write(folder / f"audio/{i}.wav", tone(1.0, seed=i).T, RATE, subtype="FLOAT")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    LatentTokenizer.from_autoencoder(make_autoencoder()).save_pretrained(folder / "raw")
    encode_file(tokenizer, str(folder / "audio/0.wav"), folder / "coded.ltk")


@contextlib.contextmanager
def fresh(template: Path) -> Iterator[Path]:
    """A copy of the place, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="latok-faults-") as name:
        place = Path(name) / "place"
        shutil.copytree(template, place)
        yield place


# Running


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        code: Exit code; negative for a signal.
        said: What it printed, both ways.
        steps: How often it touched files, if it lived to tell.
    """

    code: int
    said: str
    steps: int = 0

    @property
    def unclear(self) -> str | None:
        """What is wrong with how it ended, if anything."""
        if "Traceback (most recent call last)" in self.said:
            return "a traceback: " + self.said.strip().rsplit("\n", 1)[-1]
        if self.code == -signal.SIGABRT:
            return "hangs"
        if self.code not in (0, 2, 130, -signal.SIGKILL):
            return f"exit code {self.code}"
        return None


def _main(operation: Operation, extra: tuple[str, ...]) -> int:
    reconstruction.CropRun.crops = _hold_out_one(reconstruction.CropRun.crops)
    run = {"latok": latok, "datasets_scripts": prepare, "generative": generative}[operation.command]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(run([*operation.arguments, *extra]) or 0)


def _hold_out_one(crops: Callable[..., Any]) -> Callable[..., Any]:
    """Validation takes nearly all the time, and writes nothing but a line of the log."""

    def with_one(*arguments: Any, **options: Any) -> Any:
        train, held_out = crops(*arguments, **options)
        held_out.length, held_out.crop_length = 1, 1600
        return train, held_out

    return with_one


def start(
    operation: Operation,
    place: Path,
    fault: Callable[[int, str, tuple[Any, ...]], None] | None = None,
    extra: tuple[str, ...] = (),
    during: Callable[[int], None] | None = None,
    output: int | None = None,
    gate: int | None = None,
) -> Outcome:
    """Runs an operation in a forked process.

    Args:
        operation: What to run.
        place: Its working folder.
        fault: Called in it before every step, with the step's number, name and arguments.
        extra: More arguments.
        during: Called in this process with the other's id.
        output: Descriptor that standard output goes to, in place of what is kept.
        gate: Descriptor that it reads a byte from before it begins.
    """
    said = place.parent / "said.txt"
    count = place.parent / "steps.txt"
    count.unlink(missing_ok=True)
    kept = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # Here, where no call fails.
    child = os.fork()
    if child == 0:
        if gate is not None:
            os.read(gate, 1)
        _child(operation, place, fault, extra, kept, count, output)
    os.close(kept)
    if during is not None:
        during(child)
    code = _wait(child)
    steps = int(count.read_text()) if count.exists() else 0
    return Outcome(code, said.read_text(errors="replace"), steps)


def _wait(child: int) -> int:
    """Exit code of a process; one that takes too long is ended, as hanging."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGABRT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(
    operation: Operation,
    place: Path,
    fault: Callable[[int, str, tuple[Any, ...]], None] | None,
    extra: tuple[str, ...],
    kept: int,
    count: Path,
    output: int | None,
) -> None:
    code = 1
    try:
        os.dup2(kept if output is None else output, 1)
        os.dup2(kept, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), line_buffering=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # tqdm's own lock is shared by forked processes: one that is killed would keep it for ever.
        tqdm.set_lock(threading.RLock())
        os.chdir(place)
        taken = [0]
        busy = [False]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if busy[0] or event not in STEPS or os.getpid() != own or not _inside(arguments):
                return
            taken[0] += 1
            busy[0] = True
            try:
                if fault is not None:
                    fault(taken[0], event, arguments)
            finally:
                busy[0] = False

        own, root = os.getpid(), os.path.realpath(place)

        def _inside(arguments: tuple[Any, ...]) -> bool:
            path = arguments[0] if arguments else None
            if not isinstance(path, (str, bytes, os.PathLike)):
                return False
            return os.path.abspath(os.fsdecode(path)).startswith(root)  # noqa: PTH100 - links stay

        sys.addaudithook(hook)
        code = _main(operation, extra)
        busy[0] = True
        count.write_text(str(taken[0]))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 2
    except BaseException:  # Shown to whoever looks for tracebacks.
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


# Faults


def kill_at(step: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    """Dies before a step."""

    def fault(number: int, event: str, arguments: tuple[Any, ...]) -> None:
        del event, arguments
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def interrupt_at(step: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    """Ctrl-C before a step."""

    def fault(number: int, event: str, arguments: tuple[Any, ...]) -> None:
        del event, arguments
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)

    return fault


def full_from(step: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    """From a step on nothing can be written; what is there can be read, renamed and removed."""

    def fault(number: int, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "os.mkdir" or (
            event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        )
        if number >= step and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    return fault


def removing(step: int, file: Path) -> Callable[[int, str, tuple[Any, ...]], None]:
    """A file of the input vanishes before a step."""

    def fault(number: int, event: str, arguments: tuple[Any, ...]) -> None:
        del event, arguments
        if number == step:
            file.unlink()

    return fault


# Looking


def result(operation: Operation, place: Path) -> dict[str, str]:
    """Hashes of the results, those of JSON without times."""
    found = {}
    for name in operation.results:
        path = place / name
        if not path.exists():
            found[name] = "missing"
        elif path.suffix == ".json":
            value = _without(json.loads(path.read_text()), (*operation.ignored, "_name_or_path"))
            found[name] = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        elif path.suffix in (".ogg", ".opus"):  # Their streams have random numbers.
            found[name] = hashlib.sha256(soundfile.read(path)[0].tobytes()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def half_written(place: Path) -> list[str]:
    """Files that have their final names and are not whole."""
    wrong = []
    for path in sorted(place.rglob("*")):
        parts = path.relative_to(place).parts
        hidden = any(p.startswith(".") or p.endswith(".old") for p in parts)
        if hidden or not path.is_file() or parts[0] in ("audio", "model", "raw", "more"):
            continue
        try:
            _read(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(place)}: {type(error).__name__}: {error}")
    for config in place.glob("out/**/config.json"):
        if config.parent.name.startswith("."):
            continue
        if json.loads(config.read_text()).get("model_type") != "latent_tokenizer":
            continue
        try:
            LatentTokenizer.from_pretrained(config.parent)
        except Exception as error:
            wrong.append(f"{config.relative_to(place)}: {type(error).__name__}: {error}")
    return wrong


def _read(path: Path) -> None:
    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".ltk":
            CodeReader(path).close()
        case ".wav" | ".flac" | ".ogg" | ".opus" | ".mp3":
            soundfile.read(path)
        case ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)
        case ".safetensors":
            with safe_open(path, framework="pt") as file:
                list(file.keys())
        case ".parquet":
            pq.read_table(path)


# The table


class Injection:
    """Injects faults into operations and counts.

    Args:
        seed: Of the steps that are chosen.
    """

    def __init__(self, seed: int = 0) -> None:
        self.table: dict[tuple[str, str], Tally] = {}
        self._random = random.Random(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="latok-faults-")
        self.template = Path(self._folder.name) / "template"
        make_place(self.template)
        self._clean: dict[str, tuple[dict[str, str], int]] = {}

    def close(self) -> None:
        """Removes the template."""
        self._folder.cleanup()

    def prepare(self, operation: Operation) -> None:
        """Puts what an operation needs into the template."""
        if operation.make is not None:
            operation.make(self.template)

    def clean(self, operation: Operation) -> tuple[dict[str, str], int]:
        """The result without faults, and how many steps it takes."""
        if operation.name not in self._clean:
            with fresh(self.template) as place:
                outcome = start(operation, place)
                if outcome.code:
                    raise RuntimeError(f"{operation.name} fails by itself: {outcome.said}")
                self._clean[operation.name] = result(operation, place), outcome.steps
        return self._clean[operation.name]

    def steps(self, operation: Operation, count: int) -> list[int]:
        """Steps to place faults at: all there are, or a sample of them."""
        total = self.clean(operation)[1]
        everyone = list(range(1, total + 1))
        return sorted(self._random.sample(everyone, min(count, total)))

    def tally(self, operation: Operation, fault: str) -> Tally:
        """The row of an operation and a fault."""
        return self.table.setdefault((operation.name, fault), Tally())

    def check(
        self, operation: Operation, fault: str, place: Path, outcome: Outcome, where: str
    ) -> None:
        """Looks at what a fault has left, starts again, and looks at the result."""
        tally = self.tally(operation, fault)
        tally.tries += 1
        found = [outcome.unclear] if outcome.unclear else []
        found += half_written(place)
        again = start(operation, place)
        if again.code:
            found.append(f"does not go on: {again.said.strip()[-300:]}")
        else:
            expected = self.clean(operation)[0]
            got = result(operation, place)
            found += [f"{name} differs" for name in expected if got[name] != expected[name]]
        tally.losses += [f"{where}: {problem}" for problem in found]

    def at_steps(
        self,
        operation: Operation,
        fault: str,
        make: Callable[[int], Callable[[int, str, tuple[Any, ...]], None]],
        count: int,
    ) -> None:
        """A fault before each of some steps."""
        for step in self.steps(operation, count):
            with fresh(self.template) as place:
                outcome = start(operation, place, make(step))
                self.check(operation, fault, place, outcome, f"step {step}")

    def removed_input(self, operation: Operation, count: int) -> None:
        """A clip vanishes before a step, and comes back."""
        for step in self.steps(operation, count):
            with fresh(self.template) as place:
                file = place / ("coded.ltk" if operation.name == "decode" else "audio/0.wav")
                content = file.read_bytes()
                stat = file.stat()
                outcome = start(operation, place, removing(step, file))
                file.write_bytes(content)
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
                if outcome.code == 0 and operation.name in ("train", "finetune", "prepare"):
                    # It went on without the clip, and said so in its log: a result of its own.
                    tally = self.tally(operation, "removed input")
                    tally.tries += 1
                    tally.losses += [f"step {step}: {x}" for x in half_written(place)]
                    continue
                self.check(operation, "removed input", place, outcome, f"step {step}")

    def worker_death(self, operation: Operation, count: int) -> None:
        """A worker process is killed at a random moment."""
        if not operation.worker:
            return
        for number in range(count):
            with fresh(self.template) as place:
                wait = self._random.uniform(0.0, 0.3)
                outcome = start(
                    operation,
                    place,
                    extra=operation.worker,
                    during=lambda child, wait=wait: _kill_child_of(child, wait),
                )
                self.check(operation, "a worker's death", place, outcome, f"try {number}")

    def no_folder(self, operation: Operation) -> None:
        """A file where the folder of the output should be."""
        if operation.name in ("encode", "decode"):
            return
        with fresh(self.template) as place:
            (place / "out").write_text("not a folder")
            outcome = start(operation, place)
            tally = self.tally(operation, "a file for a folder")
            tally.tries += 1
            if outcome.code != 2 or outcome.unclear or (place / "out").read_text()[:3] != "not":
                tally.losses.append(f"exit code {outcome.code}: {outcome.said.strip()[-300:]}")

    def mounted(self, operation: Operation, fault: str, options: str) -> bool:
        """On a file system of its own that is read-only, or really full; needs the right to mount.

        Returns:
            Whether that was possible.
        """
        with fresh(self.template) as place:
            disk = place.parent / "disk"
            disk.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return False
            try:
                target = disk / "out"
                name = operation.results[0].split("/", maxsplit=1)[0]
                (place / name).symlink_to(target if "." not in name else disk / name)
                if "ro" not in options.split(",") and "." not in name:
                    target.mkdir()
                if "ro" not in options.split(","):
                    _fill(disk)  # Little is written: there is no disk small enough.
                outcome = start(operation, place)
                tally = self.tally(operation, fault)
                tally.tries += 1
                if outcome.code != 2 or outcome.unclear:
                    tally.losses.append(f"exit code {outcome.code}: {outcome.said.strip()[-300:]}")
                tally.losses += half_written(disk)
            finally:
                # Lazily: a reader in another thread may not have closed its file yet.
                subprocess.run(["umount", "--lazy", str(disk)], check=False)
            (place / name).unlink()
            again = start(operation, place)
            if again.code or result(operation, place) != self.clean(operation)[0]:
                tally.losses.append(f"does not go on: {again.said.strip()[-300:]}")
        return True

    def broken_pipe(self, operation: Operation) -> None:
        """Whoever should read the output has gone."""
        with fresh(self.template) as place:
            reader, writer = os.pipe()
            os.close(reader)
            outcome = start(operation, place, output=writer)
            os.close(writer)
            self.check(operation, "broken pipe", place, outcome, "once")

    def report(self) -> str:
        """The table, in Markdown, and below it every loss."""
        lines = ["| operation | fault | tries | losses |", "|---|---|---|---|"]
        losses = []
        for (operation, fault), tally in self.table.items():
            lines.append(f"| {operation} | {fault} | {tally.tries} | {len(tally.losses)} |")
            losses += [f"{operation}, {fault}, {loss}" for loss in tally.losses]
        tries = sum(tally.tries for tally in self.table.values())
        lines.append(f"| all | | {tries} | {len(losses)} |")
        return "\n".join([*lines, *(["", *losses] if losses else [])])


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def _kill_child_of(process: int, wait: float) -> None:
    """Kills a child of a process, some time after it has one; nothing if it ends before."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        workers = [pid for pid in map(int, listed) if _is_worker(pid)]
        if workers:
            time.sleep(wait)
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def _is_worker(process: int) -> bool:
    # multiprocessing's resource tracker is a child as well.
    try:
        return b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> int:
    """Prints the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=50, help="of each operation, at most")
    parser.add_argument("--others", type=int, default=10, help="faults of each other kind")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tqdm.monitor_interval = 0  # A thread, which does not survive a fork.
    injection = Injection(options.seed)
    mounts = True
    for name in options.only:
        operation, few = OPERATIONS[name], options.others
        injection.prepare(operation)
        injection.at_steps(operation, "kill -9", kill_at, options.kills)
        injection.at_steps(operation, "Ctrl-C", interrupt_at, few)
        injection.at_steps(operation, "full disk", full_from, few)
        injection.removed_input(operation, few)
        injection.worker_death(operation, min(few, 3))
        injection.no_folder(operation)
        injection.broken_pipe(operation)
        for fault, mount in (("full file system", "size=48k"), ("read-only", "ro,size=1m")):
            mounts = mounts and injection.mounted(operation, fault, mount)
        sys.stderr.write(f"{name} done\n{injection.report()}\n")
    sys.stdout.write(injection.report() + "\n")
    if not mounts:
        sys.stdout.write("Full and read-only file systems: not tried, this user may not mount.\n")
    injection.close()
    return int(any(tally.losses for tally in injection.table.values()))


if __name__ == "__main__":
    sys.exit(main())
