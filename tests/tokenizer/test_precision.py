"""Results do not depend on what a script allows for speed."""

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import RATE, make_autoencoder, tone
from torch.utils._python_dispatch import TorchDispatchMode

import tokenizer as package
from tokenizer import load_tokenizer
from tokenizer.networks.spectral import imdct, mdct
from tokenizer.precision import full_float32
from tokenizer.quantizers.kmeans import nearest
from tokenizer.training.losses import MelDistance, band_energy_distance

BACKENDS: Any = torch.backends
EXAMPLE = Path(package.__file__).parent / "assets/example.flac"
KINDS = [(b, op) for b in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn")]
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}

new_settings = pytest.mark.skipif(not hasattr(BACKENDS, "fp32_precision"), reason="needs torch 2.9")


def precisions():
    return [torch._C._get_fp32_precision_getter(*kind) for kind in KINDS]


@contextmanager
def allowed(setting):
    """What a script may have set; all is as before afterwards."""
    before = torch.backends.cudnn.allow_tf32
    try:
        match setting:
            case "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    yield
                return
            case "fp32_precision":
                BACKENDS.fp32_precision = "bf16"
            case "cudnn":
                torch.backends.cudnn.allow_tf32 = not before
            case _:
                torch.set_float32_matmul_precision(setting)
        yield
    finally:
        if hasattr(BACKENDS, "fp32_precision"):
            BACKENDS.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = before


class EmulatedTF32(TorchDispatchMode):
    """Rounds the factors of products as a GPU would that is allowed to."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        if func.overloadpacket.__name__ in PRODUCTS and torch.backends.cuda.matmul.allow_tf32:
            args = [self._rounded(x) for x in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(x):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        # In bits: to nearest, ten of the mantissa's 23.
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def everything(tokenizer):
    """Codes, samples and streams of the example's beginning, with greedy and beam search."""
    import soundfile

    wave = soundfile.read(EXAMPLE, dtype="float32", frames=60_000, always_2d=True)[0].T
    row = tokenizer.encode_codes(wave, sampling_rate=tokenizer.sampling_rate, gain=0.1)
    latents = tokenizer.encode_latents(wave, sampling_rate=tokenizer.sampling_rate, gain=0.1)
    encoder, decoder = tokenizer.stream_encoder(gain=0.1), tokenizer.stream_decoder(gain=0.1)
    streamed = [decoder.push(encoder.push(part)) for part in np.array_split(wave, 3, axis=1)]
    streamed += [decoder.push(encoder.finish()), decoder.finish()]
    return [
        row["codes"],
        tokenizer.decode_codes(row),
        latents["latents"],
        tokenizer.decode_latents(latents),
        np.concatenate(streamed, axis=1),
    ]


@pytest.fixture(scope="module")
def bundled():
    return load_tokenizer()


@pytest.fixture(scope="module")
def expected(bundled):
    return everything(bundled)


# oneDNN really computes in bfloat16 for "medium" on processors that can.
@pytest.mark.parametrize("setting", ["high", "medium", "autocast", "fp32_precision"])
def test_codes_and_audio_are_the_same_whatever_is_allowed(bundled, expected, setting):
    with allowed(setting):
        found = everything(bundled)
    assert all(map(np.array_equal, found, expected))


def test_codes_and_audio_are_the_same_on_a_device_with_tf32(bundled, expected):
    with allowed("high"), EmulatedTF32():
        x = torch.rand(8, 8)
        assert not torch.equal(x @ x, x.double().matmul(x.double()).float())
        found = everything(bundled)
    assert all(map(np.array_equal, found, expected))


def test_the_parts_that_carry_the_waveform_and_judge_it_stay_float32_in_training():
    model = make_autoencoder().train()
    x = torch.from_numpy(tone(0.5))[None]
    other = torch.from_numpy(tone(0.5, seed=2))[None]

    def parts():
        c = mdct(x[:, 0], model.hop_length)
        return [
            c,
            imdct(c),
            model.encoder.linear_path(c),
            MelDistance(RATE)(x, other),
            band_energy_distance(x, other, RATE),
            nearest(c[0], c[0, :30]),
        ]

    plain = parts()
    with allowed("high"), EmulatedTF32():
        found = parts()
    assert all(map(torch.equal, found, plain))


@new_settings
@pytest.mark.parametrize("setting", ["highest", "high", "medium", "fp32_precision", "cudnn"])
def test_what_a_script_set_is_restored(setting):
    with allowed(setting):
        before = precisions()
        with full_float32():
            assert set(precisions()) <= {"ieee", "none"}
            with full_float32():
                pass
            assert set(precisions()) <= {"ieee", "none"}
        assert precisions() == before
        if setting != "fp32_precision":
            legacy = setting if setting != "cudnn" else "highest"
            assert torch.get_float32_matmul_precision() == legacy


def test_autocast_is_restored():
    with torch.autocast("cpu", torch.bfloat16):
        with full_float32():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_threads_that_overlap_all_get_full_float32():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with full_float32():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with allowed("medium"):
        with full_float32():
            thread.start()
            entered.wait()
        # The first has ended, the other still computes.
        assert torch.get_float32_matmul_precision() == "highest"
        leave.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "medium"
