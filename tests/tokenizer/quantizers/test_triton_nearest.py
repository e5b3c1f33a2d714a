"""The kernel for GPUs: right where triton interprets it, small where triton compiles it.

Neither needs a GPU. Both run in processes of their own, as triton decides when it is imported
whether it interprets.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tokenizer.quantizers.kmeans import fused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]

AGREES = """
import sys, torch
from tokenizer.quantizers.triton_nearest import nearest_fused
device = "cuda" if torch.cuda.is_available() else "cpu"
g = torch.Generator().manual_seed(0)
for rows, size, dim in ((200, 70, 24), (1, 3, 5), (130, 128, 64)):
    # Small integers: products are exact, ties many, and the first of equals is asked for.
    x = torch.randint(-3, 4, (rows, dim), generator=g).float()
    keys = torch.randint(-3, 4, (size, dim), generator=g).float()
    bias = -keys.square().sum(1) / 2
    codes, best = nearest_fused(x.to(device), keys.to(device), bias.to(device))
    scores = x @ keys.T + bias
    assert codes.tolist() == scores.numpy().argmax(1).tolist()
    assert best.tolist() == scores.amax(1).tolist()
for dim in (8, 64, 112, 192, 300, 1024):
    x, keys = torch.randn(150, dim, generator=g), torch.randn(100, dim, generator=g)
    bias = -keys.square().sum(1) / 2
    codes, best = nearest_fused(x.to(device), keys.to(device), bias.to(device))
    scores = x.double() @ keys.double().T + bias.double()
    assert codes.tolist() == scores.argmax(1).tolist(), dim
    torch.testing.assert_close(best.double().cpu(), scores.amax(1), rtol=1e-5, atol=1e-3)
print("agrees")
"""

COMPILED = """
import json, re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tokenizer.quantizers import triton_nearest as kernel

pointers = {"x": "*fp32", "keys": "*fp32", "bias": "*fp32", "codes": "*i64", "best": "*fp32"}
numbers = {"num_rows": "i32", "num_entries": "i32", "dim": "i32"}
constants = {name: getattr(kernel, name) for name in ("ROWS", "ENTRIES", "CHUNK")}
types = pointers | numbers | dict.fromkeys(constants, "constexpr")
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for capability in (80, 90):
    # Whether the dimensions are a multiple of 16 decides how they are read.
    for aligned in (True, False):
        places = range(8) if aligned else range(5)
        attributes = {(i,): [["tt.divisibility", 16]] for i in places}
        source = ASTSource(kernel.nearest_kernel, types, constants, attributes)
        target = GPUTarget("cuda", capability, 32)
        done = triton.compile(source, target=target, options={"num_warps": kernel.NUM_WARPS})
        binary = Path(sys.argv[1]) / "kernel.cubin"
        binary.write_bytes(done.asm["cubin"])
        usage = subprocess.run(
            [tool, "-res-usage", binary], capture_output=True, text=True, check=True
        ).stdout
        line = {"capability": capability, "aligned": aligned, "shared": done.metadata.shared}
        line["stack"] = int(re.search(r"STACK:(\\d+)", usage)[1])
        line["registers"] = int(re.search(r"REG:(\\d+)", usage)[1])
        print(json.dumps(line))
"""


def in_process(code, *arguments, interpreted):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_agrees_with_the_product():
    assert fused(torch.device("cpu")) is None
    assert in_process(AGREES, interpreted=not torch.cuda.is_available()) == ["agrees"]


def test_it_fits_into_any_gpu(tmp_path):
    lines = [json.loads(line) for line in in_process(COMPILED, tmp_path, interpreted=False)]
    assert len(lines) == 4
    for line in lines:
        assert line["shared"] < 99 * 1024, line
        # Spilled registers lie on the stack.
        assert line["stack"] == 0, line
        assert line["registers"] <= 255, line
