"""What every quantizer keeps to, whatever it is."""

import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from models import DIM, RATE, REFUSED, make_autoencoder, tone
from safetensors.torch import load_file, save_file

from tokenizer import LatentTokenizer, decode_file, encode_file
from tokenizer.audio import write_audio
from tokenizer.quantizers import QUANTIZERS, Quantizer, TensorSource, build_quantizer
from tokenizer.quantizers.base import FitContext

K, SIZE = 3, 16
OPTIONS = {
    "rvq": {"codebook_size": SIZE, "beam_width": 2},
    "rq-faiss": {"codebook_size": SIZE},
    "pq": {"codebook_size": SIZE},
    "opq": {"codebook_size": SIZE},
    "lsq": {"codebook_size": SIZE, "iterations": 3, "search_rounds": 4},
    "fsq": {"levels": [5, 3]},
    "rfsq": {"levels": [4, 2, 2]},
    "qinco": {"codebook_size": SIZE, "hidden": 8, "depth": 1, "candidates": 4, "steps": 5},
    "factorized": {"codebook_size": SIZE, "codebook_dim": 4},
    "projected_fsq": {"levels": [4, 4]},
}
# Standardizations change what is stored and how the search measures.
for _mode in ("scalar", "channel", "whiten", "decoder"):
    OPTIONS[f"rvq {_mode}"] = {"codebook_size": SIZE, "standardization": _mode}
BY_FAISS = ("rq-faiss", "pq", "opq", "lsq")


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _latents(rows=800, seed=0):
    """Correlated, of uneven variance, away from zero, with long tails."""
    mixing = torch.randn(DIM, DIM, generator=_generator(99)) * torch.logspace(0, -1, DIM)
    x = torch.randn(rows, DIM, generator=_generator(seed))
    return (x * x.abs().sqrt()) @ mixing + 2


def _fit(kind, x=None, seed=0):
    """Of a kind, or of a kind and a standardization."""
    config = {"kind": kind.split()[0], "dim": DIM, "num_codebooks": K, **OPTIONS[kind]}
    metric = torch.diag(torch.logspace(0, 1, DIM))
    context = FitContext(_generator(seed), sensitivity=lambda: metric)
    source = TensorSource(_latents() if x is None else x)
    return build_quantizer(config).fit_with(source, context)


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(name):
    return _fit(name)


def _noise(quantizer, x, codes):
    deviation = (x - x.mean(0)).square().sum().sqrt()
    return float((x - quantizer.decode(codes)).square().sum().sqrt() / deviation)


def test_all_kinds_are_tested():
    assert {name.split()[0] for name in OPTIONS} == set(QUANTIZERS)


def test_more_codebooks_leave_less_of_unseen_latents(fitted):
    x = _latents(500, seed=1)
    noise = [_noise(fitted, x, fitted.encode(x, n)) for n in range(1, K + 1)]
    assert sorted(noise, reverse=True) == noise
    # fsq has 6 of 8 components at 4 bits for two of them: the coarsest of all.
    assert noise[-1] < 0.75
    assert all(
        0 <= n < size
        for n, size in zip(fitted.encode(x).amax(0), fitted.codebook_sizes, strict=True)
    )


def test_measured_noise_is_that_of_the_codes(fitted):
    x = _latents()
    for n in range(1, K + 1):
        # rvq measures greedy codes, and so does not say what its beam gains.
        codes = fitted.encode(x, n, 1) if fitted.kind == "rvq" else fitted.encode(x, n)
        expected = pytest.approx(_noise(fitted, x, codes), rel=1e-4)
        assert float(fitted.noise_levels[n - 1]) == expected
    assert fitted.report.frames == len(x)
    assert len(fitted.report.table().splitlines()) == 4 + K
    assert fitted.code_counts.sum(1).tolist() == [len(x)] * K


def test_codes_and_latents_do_not_depend_on_company(fitted):
    x = _latents(1500, seed=1)
    codes = fitted.encode(x)
    latents = fitted.decode(codes)
    assert codes.dtype == torch.int64
    assert latents.dtype == torch.float32
    for start, stop in ((0, 1), (0, 7), (3, 300), (255, 258), (1020, 1030), (1499, 1500)):
        assert torch.equal(fitted.encode(x[start:stop]), codes[start:stop])
        assert torch.equal(fitted.decode(codes[start:stop]), latents[start:stop])
    assert fitted.encode(x[:0], 2).shape == (0, 2)
    assert fitted.decode(codes[:0]).shape == (0, DIM)


def test_prefixes_are_as_said(fitted):
    x = _latents(400, seed=1)
    codes = fitted.encode(x)
    same = [torch.equal(fitted.encode(x, n), codes[:, :n]) for n in range(1, K + 1)]
    assert all(same) == fitted.prefix_codes
    # Any prefix of codes decodes.
    assert all(fitted.decode(codes[:, :n]).isfinite().all() for n in range(1, K + 1))


@pytest.mark.parametrize("order", ["sorted", "mixed", "equal"])
def test_frames_of_different_numbers_of_codebooks_get_the_codes_they_get_alone(fitted, order):
    x = _latents(1300, seed=1)
    counts = 1 + torch.randint(K, (len(x),), generator=_generator(2)).numpy()
    counts = {"sorted": np.sort(counts), "mixed": counts, "equal": np.full(len(x), 2)}[order]
    codes = fitted.encode_each(x, counts)
    assert codes.shape == (len(x), counts.max())
    latents = fitted.decode_each(codes, counts)
    for n in np.unique(counts):
        rows = torch.from_numpy(counts == n)
        assert torch.equal(latents[rows], fitted.decode(codes[rows, : int(n)]))
        assert torch.equal(codes[rows, :n], fitted.encode(x[rows], int(n)))
        assert not codes[rows, n:].any()


def test_codes_are_the_same_under_autocast_and_for_other_types(fitted):
    x = _latents(300, seed=1)
    codes = fitted.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted.encode(x), codes)
        assert torch.equal(fitted.decode(codes), fitted.decode(codes))
        autocast = fitted.decode(codes)
    assert torch.equal(autocast, fitted.decode(codes))
    assert torch.equal(fitted.encode(x.double()), codes)
    with torch.inference_mode():
        assert torch.equal(fitted.encode(x), codes)


def test_the_seed_decides_everything(fitted, name):
    again = _fit(name)
    for key, value in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_state_survives_saving_bit_for_bit(fitted, tmp_path):
    save_file(fitted.state_dict(), tmp_path / "q.safetensors")
    config = json.loads(json.dumps({"kind": fitted.kind, **fitted.to_config()}))
    other = build_quantizer(config)
    assert type(other) is type(fitted)
    other.load_state_dict(load_file(tmp_path / "q.safetensors"))
    x = _latents(300, seed=1)
    codes = fitted.encode(x)
    assert torch.equal(other.encode(x), codes)
    assert torch.equal(other.decode(codes), fitted.decode(codes))
    assert other.report == fitted.report
    assert other.to_config() == fitted.to_config()


@pytest.mark.slow
def test_it_works_inside_a_tokenizer(name, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    z = tokenizer.encode(torch.from_numpy(tone(4.0))[None]).latents[0].T
    quantizer = _fit(name, z.clone())
    tokenizer.set_quantizer(quantizer)
    clip = tone(0.7, seed=5)
    row = tokenizer.encode_codes(clip, sampling_rate=RATE)
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = LatentTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert isinstance(loaded.quantizer, Quantizer)
    again = loaded.encode_codes(clip, sampling_rate=RATE)
    np.testing.assert_array_equal(again["codes"], row["codes"])
    audio = loaded.decode_codes(again)
    np.testing.assert_array_equal(audio, tokenizer.decode_codes(row))
    write_audio(tmp_path / "in.wav", clip, RATE)
    encode_file(loaded, tmp_path / "in.wav", tmp_path / "in.ltk")
    decode_file(loaded, tmp_path / "in.ltk", tmp_path / "out.wav")
    assert len(soundfile.read(tmp_path / "out.wav")[0]) == clip.shape[1]


@pytest.mark.parametrize("kind", BY_FAISS)
def test_without_faiss_only_fitting_fails(kind, monkeypatch):
    fitted = _fit(kind)
    monkeypatch.setitem(sys.modules, "faiss", None)
    fitted.decode(fitted.encode(_latents(10)))
    with pytest.raises(ImportError, match=r"latent-tokenizer\[faiss\]"):
        _fit(kind)


@pytest.mark.parametrize("kind", BY_FAISS)
def test_faiss_wants_powers_of_two_and_enough_latents(kind):
    config = {"kind": kind, "dim": DIM, "num_codebooks": 2}
    with pytest.raises(ValueError, match=r"codebook_size\D+12\b"):
        build_quantizer({**config, "codebook_size": 12})
    with pytest.raises(ValueError, match=r"\b15\b.*\b16\b"):
        _fit(kind, _latents(15))


def test_counts_that_are_no_integers_are_refused(fitted):
    config = fitted.to_config()
    for name in (name for name, value in config.items() if type(value) is int):
        with pytest.raises(ValueError, match=rf"{name}.*{config[name]}\.5"):
            build_quantizer({"kind": fitted.kind, **config, name: config[name] + 0.5})


def test_bad_input_is_refused(fitted):
    x = _latents(5)
    for bad in (x[:, :7], x.long(), x[0]):
        with pytest.raises(REFUSED):
            fitted.encode(bad)
    with pytest.raises(ValueError, match="finite"):
        fitted.encode(torch.full((1, DIM), torch.nan))
    for n in (0, K + 1):
        with pytest.raises(ValueError, match=f"n_codebooks is {n}"):
            fitted.encode(x, n)
    codes = fitted.encode(x)
    with pytest.raises(ValueError, match="Codes run from"):
        fitted.decode(codes + max(fitted.codebook_sizes))
    with pytest.raises(ValueError, match="Codes have shape"):
        fitted.decode(torch.cat([codes, codes], 1))
    unfitted = build_quantizer({"kind": fitted.kind, **fitted.to_config()})
    with pytest.raises(RuntimeError, match="not fitted"):
        unfitted.encode(x)
    with pytest.raises(ValueError, match=r"\b7\b.*\b8\b"):
        unfitted.fit(TensorSource(x[:, :7]), generator=_generator())
    with pytest.raises(ValueError, match="finite"):
        unfitted.fit(TensorSource(torch.full((100, DIM), torch.inf)), generator=_generator())
    assert not bool(unfitted.fitted)
    with pytest.raises(ValueError, match="colour"):
        build_quantizer({"kind": fitted.kind, "colour": 1, **fitted.to_config()})


def test_latents_without_variance_can_be_fitted(name):
    quantizer = _fit(name, torch.full((50, DIM), 3.0))
    z = torch.full((4, DIM), 3.0)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(z)), z, rtol=1e-3, atol=1e-2)
