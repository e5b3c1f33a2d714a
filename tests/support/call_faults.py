"""Each call that changes a file fails once: ``python tests/support/call_faults.py``.

strace notes the calls of a run that change files in its folder. Then the run is repeated for each
of them, which fails with EIO or ENOSPC; and for some sizes with no file allowed to grow beyond
(RLIMIT_FSIZE), so that a write is cut short before the next one fails. What was said is compared
with what is there: no exit code 0 with a missing or other result, no half-written file, no
traceback; and the next start makes what a run without faults makes.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from faults import OPERATIONS, Injection, Operation, Outcome, fresh, half_written, result, start
from tqdm import tqdm

CALLS = (
    "openat", "write", "pwrite64", "writev", "ftruncate", "fallocate", "fsync", "fdatasync",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "chmod",
    "fchmod", "fchmodat", "link", "symlink", "copy_file_range", "sendfile",
)  # fmt: skip
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")


def can_trace() -> bool:
    """Whether there is strace, and it may trace a process."""
    return (
        shutil.which("strace") is not None
        and not subprocess.run(
            ["strace", "-o", "/dev/null", "true"], capture_output=True, check=False
        ).returncode
    )


def traced(operation: Operation, place: Path, *options: str) -> tuple[Outcome, list[str]]:
    """Runs an operation under strace; returns what it noted."""
    log = place.parent / "calls.txt"
    gate, opener = os.pipe()
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={','.join(CALLS)}"]

    tracers = []

    def attach(child: int) -> None:
        arguments = [*command, *options, "-p", str(child)]
        tracers.append(subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True))
        tracers[0].stderr.readline()  # It has attached.
        os.write(opener, b"x")

    outcome = start(operation, place, during=attach, gate=gate)
    tracers[0].communicate()
    os.close(gate)
    os.close(opener)
    return outcome, log.read_text(errors="replace").splitlines()


def changing_calls(lines: list[str], place: Path) -> list[tuple[str, int]]:
    """The calls that change files in a folder: name, and which of its thread's calls of it."""
    counts, found = Counter[tuple[str, str]](), []
    for line in lines:
        if (match := _LINE.match(line)) is None:  # Another part of a call, or a signal.
            continue
        thread, name, rest = match.groups()
        counts[thread, name] += 1
        writes = name != "openat" or re.search("O_WRONLY|O_RDWR|O_CREAT", rest)
        # Names may be relative to the folder, which is the working directory.
        here = str(place) in rest or re.search(r'\("(?!/)', f"({rest}")
        if writes and here and not re.search("/dev/null|/steps.txt", rest):
            found.append((name, counts[thread, name]))
    return found


def check(injection: Injection, operation: Operation, fault: str, place: Path, outcome: Outcome, where: str) -> None:  # fmt: skip # noqa: E501
    """Compares what a run said with what is there, and starts it again."""
    tally = injection.tally(operation, fault)
    tally.tries += 1
    expected = injection.clean(operation)[0]
    wrong = [outcome.unclear] if outcome.unclear else []
    wrong += half_written(place)
    if outcome.code == 0 and result(operation, place) != expected:
        wrong.append("exit 0, and the result differs")
    if outcome.code != 0:
        wrong += [] if outcome.said.strip() else ["it says nothing"]
        again = start(operation, place)
        if again.code or result(operation, place) != expected:
            wrong.append(f"started again: {again.code}, {again.said.strip()[-300:]}")
    tally.losses += [f"{where}: {problem}" for problem in wrong]


def fail_each_call(injection: Injection, operation: Operation, most: int | None = None) -> int:
    """Fails each of an operation's calls, or as many, evenly spread; returns how many it has."""
    injection.prepare(operation)
    with fresh(injection.template) as place:
        calls = changing_calls(traced(operation, place)[1], place)
    step = 1 if most is None else max(1, len(calls) // most)
    for number, (name, index) in list(enumerate(calls))[::step]:
        error = ("EIO", "ENOSPC")[number % 2]
        with fresh(injection.template) as place:
            inject = f"inject={name}:error={error}:when={index}"
            outcome, lines = traced(operation, place, "-e", inject)
            failed = next((line for line in lines if "(INJECTED)" in line), "")
            # Calls are counted, and another thread's may come first: the harness's own, too.
            if (str(place) in failed or '("' in failed) and "/steps.txt" not in failed:
                check(injection, operation, error, place, outcome, f"call {number}, {failed[:150]}")
    return len(calls)


def cut_short(injection: Injection, operation: Operation, count: int) -> None:
    """Lets no file grow beyond some sizes: a write is cut short, and the next one fails."""
    with fresh(injection.template) as place:
        start(operation, place)
        size = max((place / name).stat().st_size for name in operation.results)
    least = min(1000, size * 4 // 5)  # What it says goes to a file as well.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in range(count):
        room = least + (size - least) * number // count
        with fresh(injection.template) as place:

            def limit(step: int, event: str, arguments: Any, room: int = room) -> None:
                del event, arguments
                if step == 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

            outcome = start(operation, place, limit)
            check(injection, operation, "short write", place, outcome, f"{room} of {size} bytes")


def main() -> int:
    """Prints the table, and the number of calls; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--most", type=int, help="calls of each operation; default: all")
    parser.add_argument("--sizes", type=int, default=20, help="at which writes are cut short")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    options = parser.parse_args()
    if not can_trace():
        sys.stderr.write("This needs strace, and the right to trace.\n")
        return 2
    tqdm.monitor_interval = 0  # A thread, which does not survive a fork.
    injection = Injection()
    for name in options.only:
        calls = fail_each_call(injection, OPERATIONS[name], options.most)
        cut_short(injection, OPERATIONS[name], options.sizes)
        sys.stderr.write(f"{name}: {calls} calls that change files\n")
    sys.stdout.write(injection.report() + "\n")
    injection.close()
    return int(any(tally.losses for tally in injection.table.values()))


if __name__ == "__main__":
    sys.exit(main())
