"""Scripts of this folder in several processes on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def launch(processes: int, script: str, *arguments: object, **environment: str) -> None:
    """Runs a script in processes of one thread that form a group; fails as they do."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    starter = ["torch.distributed.run", "--nproc_per_node", processes, "--master_port", port]
    words = [sys.executable, "-m", *starter, TESTS / script, *arguments]
    shared = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(TESTS.parents[1]), str(TESTS))),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [str(word) for word in words],
        env=os.environ | shared | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
