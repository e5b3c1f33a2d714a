"""The same seed, the same model; the same audio, the same codes, however they are computed."""

import hashlib
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from models import DIM, RATE, make_tokenizer, tone

from tokenizer import load_tokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource

CODES = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from models import RATE, tone
from tokenizer import load_tokenizer
tokenizer = load_tokenizer(sys.argv[2])
row = tokenizer.encode_codes(tone(3.0), sampling_rate=RATE)
print(torch.get_num_threads(), hashlib.sha256(row["codes"].tobytes()).hexdigest())
"""


def in_process(threads, folder):
    # Threads that wait without spinning: beside other work they would wait for each other.
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    found = subprocess.run(
        [sys.executable, "-c", CODES, str(Path(models.__file__).parent), str(folder)],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.split()


@pytest.mark.slow
def test_processes_and_numbers_of_threads_make_no_difference(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    one, two = in_process(1, tmp_path), in_process(2, tmp_path)
    assert (one[0], two[0]) == ("1", "2")
    here = tokenizer.encode_codes(tone(3.0), sampling_rate=RATE)["codes"]
    assert one[1] == two[1] == hashlib.sha256(here.tobytes()).hexdigest()


def test_the_same_seed_fits_the_same_quantizer():
    latents = torch.randn(2000, DIM, generator=torch.Generator().manual_seed(1))

    def fit(seed):
        quantizer = ResidualVectorQuantizer(DIM, 3, 16)
        return quantizer.fit(
            TensorSource(latents), generator=torch.Generator().manual_seed(seed)
        ).state_dict()

    first, again, other = fit(0), fit(0), fit(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["codebooks"], other["codebooks"])


def test_the_same_seed_makes_the_same_model():
    assert make_tokenizer().fingerprint == make_tokenizer().fingerprint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_codes_on_cpu_and_gpu_agree(name):
    # float32 in another order of summation: a code changes only where two entries are equally near.
    here = make_tokenizer() if name == "tiny" else load_tokenizer()
    there = deepcopy(here).to("cuda")
    same = total = 0
    for seed in range(10):
        wave = tone(6.0, rate=here.sampling_rate, seed=seed)
        a, b = (m.encode_codes(wave, sampling_rate=here.sampling_rate) for m in (here, there))
        same += int((a["codes"] == b["codes"]).sum())
        total += a["codes"].size
        np.testing.assert_allclose(
            here.decode_codes(a), there.decode_codes(a), atol=1e-4, rtol=1e-3
        )
    assert same / total >= 0.9999, f"{same} of {total}"
