"""The checks for the first day with a GPU, rehearsed on a CPU."""

import json
import sys

import pytest
import torch

from tokenizer.benchmarks import gpu
from tokenizer.benchmarks.counting import Launches, launches
from tokenizer.benchmarks.gpu_checks import CHECKS, Setup


def test_kernels_and_reads_are_counted():
    x = torch.randn(8, 8)
    assert launches(lambda: (x @ x).relu().T[2:], "cpu") == Launches(2, 0)
    assert launches(lambda: bool(x.sum() > 0), "cpu") == Launches(2, 1)
    assert launches(lambda: x[x > 0], "cpu") == Launches(3, 1)


def test_a_failing_check_says_so_and_the_next_one_runs(monkeypatch, capsys):
    def broken(_):
        raise MemoryError("of the card")

    monkeypatch.setitem(CHECKS, "triton_kernel", broken)
    monkeypatch.setitem(CHECKS, "device_guard", lambda _: {"failed": "wrong numbers"})
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--device", "cpu", "--only", "triton_kernel", "device_guard"]
    )
    with pytest.raises(SystemExit):
        gpu.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("check") for line in lines] == [None, "triton_kernel", "device_guard"]
    assert "of the card" in lines[1]["failed"]
    assert lines[2]["failed"] == "wrong numbers"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_every_check_runs_on_a_cpu(name):
    figures = CHECKS[name](Setup("cpu", quick=True, audio=None))
    assert figures
    assert "failed" not in figures
    json.dumps(figures)
