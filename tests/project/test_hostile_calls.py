"""Every public method, called with what it was not made for: a clear error, or a right answer."""

import os

import numpy as np
import pytest
import torch
from hostile import outcome
from hypothesis import HealthCheck, given, settings, strategies as st
from jaxtyping import TypeCheckError
from models import CODEBOOKS, DIM, ENTRIES, RATE, REFUSED, tone

from tokenizer.transcoding.files import decode_file, write_row

EXAMPLES = int(os.environ.get("LATOK_FUZZ", "0"))
BUDGET = settings(
    deadline=None,
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)

evil_numbers = st.sampled_from(
    [None, True, 0, -1, 1, 2**31, 2**62, 2**70, 1.5, 0.0, -0.0, 1e300, float("nan"), float("inf"),
     "3", b"3", [], [1], {}, 1j, np.int8(3), np.float32(2), np.array([1, 2]), object()]
)  # fmt: skip
dtypes = st.sampled_from(
    ["int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float32",
     "float64", "bool", "complex64", "object", "U3", "datetime64[s]"]
)  # fmt: skip
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def arrays(draw):
    shape, dtype = draw(shapes), draw(dtypes)
    value = draw(st.sampled_from([0, 1, 15, 100, -1, 2**15, 1e30, -1e38, float("nan"), 1e-42]))
    with np.errstate(all="ignore"):
        if dtype in ("U3", "object"):
            return np.full(shape, "x", dtype=dtype)
        if np.dtype(dtype).kind in "iuM" and not np.isfinite(value):
            value = 3
        return np.full(shape, value).astype(dtype)


things = st.one_of(
    evil_numbers,
    arrays(),
    st.binary(max_size=30),
    st.text(max_size=5),
    st.lists(arrays(), max_size=2),
)


def check_audio(audio):
    for one in audio if isinstance(audio, list) else [audio]:
        assert one.dtype == np.float32
        assert one.ndim == 2
        assert np.isfinite(one).all()


@pytest.fixture(scope="module")
def row(tokenizer):
    return tokenizer.encode_latents(tone(0.1), sampling_rate=RATE) | tokenizer.encode_codes(
        tone(0.1), sampling_rate=RATE
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["encode_codes", "encode_latents"])
def test_encoding_anything(tokenizer, method):
    wave = tone(0.02)[0]

    @BUDGET
    @given(
        audio=st.one_of(
            things,
            st.fixed_dictionaries({"array": things, "sampling_rate": evil_numbers}),
            st.fixed_dictionaries({"bytes": things, "path": things}),
            st.fixed_dictionaries({"audio": things}),
        ),
        rate=st.one_of(st.just(RATE), evil_numbers),
    )
    def attempt(audio, rate):
        call = getattr(tokenizer, method)
        found, message = outcome(lambda: call(audio, sampling_rate=rate), TypeCheckError)
        if message is not None:
            return
        rows = found.get("num_samples", [])  # An empty batch has no columns.
        if not isinstance(rows, list):
            found, rows = {k: [v] for k, v in found.items()}, [rows]
        for i in range(len(rows)):
            latents = found.get("latents")
            assert latents is None or np.isfinite(latents[i]).all()
            assert np.isfinite(found["gain"][i]).all()

    attempt()

    for bad in (0, -1, CODEBOOKS + 1, 1.5, True, "2"):
        if method == "encode_codes":
            with pytest.raises(REFUSED):
                tokenizer.encode_codes(wave, sampling_rate=RATE, n_codebooks=bad)
    if method == "encode_codes":
        for bad in (0, -1.0, float("nan"), 1.0):
            with pytest.raises(REFUSED, match="bitrate"):
                tokenizer.encode_codes(wave, sampling_rate=RATE, bitrate=bad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("column", ["codes", "latents"])
def test_decoding_anything(tokenizer, row, column):
    decode = tokenizer.decode_codes if column == "codes" else tokenizer.decode_latents

    @BUDGET
    @given(
        changes=st.dictionaries(
            st.sampled_from([column, "num_samples", "num_channels", "gain"]), things, min_size=1
        ),
        dropped=st.sets(st.sampled_from(["num_samples", "num_channels", "gain"])),
    )
    def attempt(changes, dropped):
        changed = {k: v for k, v in row.items() if k not in dropped} | changes
        audio, message = outcome(lambda: decode(changed), TypeCheckError)
        if message is not None:
            return
        check_audio(audio)
        if not isinstance(audio, list):
            assert audio.shape[0] == int(changed.get("num_channels", 1))
            if "num_samples" in changed:
                assert audio.shape[1] == int(changed["num_samples"])

    attempt()

    @BUDGET
    @given(bare=things)
    def bare(bare):
        audio, message = outcome(lambda: decode(bare), TypeCheckError)
        if message is None:
            check_audio(audio)

    bare()


@pytest.mark.filterwarnings("ignore")
@given(tensor=arrays(), other=arrays(), number=evil_numbers)
@BUDGET
def test_tensors_of_any_kind(tokenizer, tensor, other, number):
    try:
        x, y = torch.as_tensor(tensor), torch.as_tensor(other)
    except TypeError:
        return  # What is no tensor is not for these methods.
    calls = (
        lambda: tokenizer.encode(x).latents,
        lambda: tokenizer.encode(x[None, None], y).latents,
        lambda: tokenizer.quantize(x),
        lambda: tokenizer.quantize(x, number),
        lambda: tokenizer.dequantize(x),
        lambda: tokenizer.decode(x, decoder="continuous"),
        lambda: tokenizer.decode(x, decoder="continuous", gain=y),
        lambda: tokenizer.decode(x, decoder=number),
        lambda: tokenizer.forward(x),
    )
    for call in calls:
        # torch refuses types with TypeErrors, and says which.
        found, message = outcome(call, TypeCheckError, TypeError)
        if message is None:
            assert bool(torch.isfinite(found.float()).all())


# What was let through once, and gave garbage.


def test_rows_that_contradict_themselves(tokenizer, row):
    for changes, message in (
        ({"num_channels": 0}, "num_channels=0"),
        ({"num_channels": -1}, "num_channels"),
        ({"num_channels": float("nan")}, "num_channels"),
        ({"num_samples": None}, "num_samples=None"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"gain": [1.0, 1.0]}, "gain"),
        ({"gain": []}, "gain"),
        ({"gain": [float("nan")]}, "gain"),
        ({"gain": [-1.0]}, "gain"),
        ({"codes": row["codes"] + 0.5}, "float64"),
        ({"codes": row["codes"].astype(bool)}, "bool"),
        ({"codes": row["codes"] + ENTRIES}, r"\b31\b.*\b15\b"),
        ({"codes": row["codes"].astype(np.uint64) + np.uint64(2**63)}, "9223372036854775823"),
        ({"codes": [[1, 2], [3]]}, "codes"),
    ):
        with pytest.raises(REFUSED, match=message):
            tokenizer.decode_codes({**row, **changes})
    assert tokenizer.decode_codes({**row, "gain": 0.5}).shape == (1, row["num_samples"])


def test_masks_that_are_no_padding_on_the_right(tokenizer):
    x = torch.from_numpy(tone(0.1))[None]
    mask = torch.ones(1, x.shape[-1], dtype=torch.int64)
    padded_left, holes, twos, short = mask.clone(), mask.clone(), 2 * mask, mask[:, 1:]
    padded_left[:, :100] = 0
    holes[:, 100:200] = 0
    for wrong in (padded_left, holes, twos, short):
        with pytest.raises(REFUSED):
            tokenizer.encode(x, wrong)
    mask[:, 500:] = 0
    expected = tokenizer.encode(x[..., :500]).latents
    assert torch.equal(tokenizer.encode(x, mask).latents, expected)


def test_samples_whose_squares_float32_cannot_hold(tokenizer):
    wave = tone(0.1)
    quiet = tokenizer.encode_latents(wave, sampling_rate=RATE)
    loud = tokenizer.encode(torch.from_numpy(wave)[None] * 1e25)
    assert torch.isfinite(loud.gain).all()
    np.testing.assert_allclose(loud.latents[0].T.numpy(), quiet["latents"], atol=1e-2, rtol=1e-2)
    with pytest.raises(REFUSED):
        tokenizer.encode(torch.ones(1, 1, 800, dtype=torch.int16))


def test_latents_that_decode_to_nothing_that_can_be_held(tokenizer):
    with pytest.raises(REFUSED, match="finite"):
        tokenizer.decode_latents(np.full((5, DIM), 3e38, dtype=np.float32))
    with pytest.raises(REFUSED, match=r"finite|NaN"):
        tokenizer.decode_latents(np.full((5, DIM), 1e300))


def test_code_files_with_gains_beyond_float32(tokenizer, row, tmp_path, monkeypatch):
    write_row(tmp_path / "a.ltk", {**row, "gain": [3e38]}, tokenizer)
    decode = tokenizer.decode_stream
    # What a decoder makes of codes is about 1, but may be 2.
    monkeypatch.setattr(
        type(tokenizer), "decode_stream", lambda _, *a: (2 + 0 * x for x in decode(*a))
    )
    with pytest.raises(REFUSED, match=r"gain=3e\+38"):
        decode_file(tokenizer, tmp_path / "a.ltk", tmp_path / "a.wav", subtype="FLOAT")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ltk"]


def test_files_of_very_many_channels(tmp_path):
    import soundfile

    from tokenizer.audio import open_audio

    soundfile.write(tmp_path / "a.wav", np.zeros((3, 1024)), RATE)
    with pytest.raises(REFUSED, match="1024"):
        open_audio(tmp_path / "a.wav", target_rate=RATE)


def test_little_audio_at_a_low_rate_does_not_take_much_memory(monkeypatch):
    from tokenizer.audio import open_audio, source as audio

    wave = np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32)
    source = open_audio(wave, target_rate=44_100, sampling_rate=200)
    whole = [block.shape[1] for block in source.blocks()]
    expected = source.read()
    monkeypatch.setattr(audio, "MAX_RESAMPLED", 2**16)
    pieces = [block.shape[1] for block in source.blocks()]
    # soxr hands out what it has in lumps of its own, but no longer all at once.
    assert 2 * max(pieces) < max(whole)
    np.testing.assert_array_equal(source.read(), expected)
