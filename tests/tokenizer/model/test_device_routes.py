"""The routes of devices beside the one of CPUs: equal to within rounding, with few kernels."""

import numpy as np
import pytest
import torch
from libraries import cases, make_library_model
from models import DIM, RATE, make_stereo_autoencoder, make_tokenizer, tone

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.autoencoders.adapter import adapter
from tokenizer.benchmarks.launches import batch_launches, in_turn, narrow_model, together
from tokenizer.model.bucket_route import BucketRoute, buckets
from tokenizer.model.packed_route import PackedRoute
from tokenizer.model.routes import Route
from tokenizer.networks.packing import Windows

# Small windows, so that signals lie across several windows and passes.
WINDOWS = Windows(frames=40, count=2)
CLIPS = [(1.3, 1), (1 / RATE, 1), (0.5, 2), (2.7, 3)]  # seconds, channels


@pytest.fixture(scope="module", params=["mono", "stereo"])
def pair(request) -> tuple[LatentTokenizer, LatentTokenizer]:
    """A tokenizer of the bundled family on the route of CPUs, and the same on that of devices."""
    autoencoder = make_stereo_autoencoder() if request.param == "stereo" else None
    here = make_tokenizer(autoencoder, beam_width=3)
    there = make_tokenizer(autoencoder, beam_width=3)
    there.windows = WINDOWS
    assert type(here.route) is Route
    assert type(there.route) is PackedRoute
    return here, there


def clips():
    return [tone(seconds, channels=c, seed=i) for i, (seconds, c) in enumerate(CLIPS)]


def assert_like(found, expected, atol=2e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_rows_of_a_batch_are_those_of_single_clips(pair):
    here, there = pair
    codes, latents = (
        [encode(clip, sampling_rate=RATE) for clip in clips()]
        for encode in (here.encode_codes, here.encode_latents)
    )
    found = there.encode_codes(clips(), sampling_rate=RATE)
    assert [c.dtype for c in found["codes"]] == [np.int16] * len(CLIPS)
    for name in ("codes", "gain", "num_samples", "num_channels"):
        for one, row in zip(found[name], codes, strict=True):
            np.testing.assert_array_equal(one, row[name])
    found = there.encode_latents(clips(), sampling_rate=RATE)["latents"]
    assert_like(found, [row["latents"] for row in latents])
    # Rows of other numbers of codebooks come in one batch, too.
    some = [{**row, "codes": row["codes"][:, : 1 + i % 2]} for i, row in enumerate(codes)]
    assert_like(there.decode_codes(some), [here.decode_codes(row) for row in some])
    assert_like(there.decode_latents(latents), [here.decode_latents(row) for row in latents])


def test_tensors_of_a_batch_are_those_of_single_items(pair):
    here, there = pair
    channels = here.autoencoder.num_channels
    x = torch.from_numpy(np.stack([tone(1.9, channels=channels, seed=i) for i in range(3)]))
    mask = torch.arange(x.shape[-1]) < torch.tensor([x.shape[-1], 1, 7001])[:, None]
    x[2, :, 7001:] = 9.0  # Padding counts for nothing.
    for gain in (None, torch.tensor([0.1, 0.2, 0.3])):
        expected = here.encode(x, mask, gain=gain)
        found = there.encode(x, mask, gain=gain)
        assert_like([found.latents, found.gain], [expected.latents, expected.gain])
        assert torch.equal(found.frame_mask, expected.frame_mask)
    audio = there.decode(expected.latents, gain=expected.gain)
    assert_like(audio, here.decode(expected.latents, gain=expected.gain))
    assert there.decode(expected.latents[:0]).shape == here.decode(expected.latents[:0]).shape


def test_what_is_not_finite_is_named(pair):
    there = pair[1]
    loud = {"array": np.full(900, 3e38, np.float32), "sampling_rate": RATE}
    fine = {"array": tone(0.4)[0], "sampling_rate": RATE}
    with pytest.raises(ValueError, match="item 1"):
        there.encode_codes([fine, loud, fine], gain=1e-3)
    with pytest.raises(ValueError, match="NaN"):
        there.encode(torch.full((1, there.autoencoder.num_channels, 99), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        there.decode(torch.full((1, DIM, 9), torch.nan))


@pytest.mark.parametrize("name", cases())
def test_autoencoders_of_other_libraries_take_batches(name):
    kind = name.removesuffix("-48").removesuffix("-odd")
    tokenizer = LatentTokenizer.from_autoencoder(adapter(kind)(make_library_model(name)))
    rate, channels = tokenizer.sampling_rate, tokenizer.autoencoder.num_channels
    # Two of equal length, others of like and of unlike length.
    lengths = (0.3, 0.3, 0.32, 0.1)
    waves = [tone(seconds, rate, channels, seed) for seed, seconds in enumerate(lengths)]
    rows = [tokenizer.encode_latents(wave, sampling_rate=rate) for wave in waves]
    audio = [tokenizer.decode_latents(row) for row in rows]
    tokenizer.windows = WINDOWS
    assert type(tokenizer.route) is BucketRoute
    latents = tokenizer.encode_latents(waves, sampling_rate=rate)["latents"]
    assert_alike(latents, [row["latents"] for row in rows])
    assert_alike(tokenizer.decode_latents(rows), audio)


def assert_alike(found, expected):
    """Equal to within rounding, beside the largest value."""
    scale = max(float(np.abs(one).max()) for one in expected)
    assert_like(found, expected, atol=1e-4 * scale)


def test_buckets_hold_equal_lengths_or_little_padding():
    lengths = [5, 100, 5, 90, 101, 40]
    assert list(buckets(lengths, 1000, padded=False)) == [[0, 2], [5], [3], [1], [4]]
    assert list(buckets(lengths, 1000, padded=True)) == [[0, 2], [5], [3, 1, 4]]
    assert list(buckets(lengths, 202, padded=True)) == [[0, 2], [5], [3, 1], [4]]


@pytest.fixture(scope="module")
def deep() -> LatentTokenizer:
    return narrow_model()


def test_a_batch_of_twelve_clips_takes_few_kernels(deep):
    found = batch_launches(deep, 12, 10, together)
    budgets = {
        "encode": (150, 2),
        "decode": (150, 2),
        "search": (700, 2),
        "codes to latents": (20, 2),
    }
    for name, (kernels, waits) in budgets.items():
        assert found[name].kernels <= kernels, found
        assert found[name].waits <= waits, found


def test_kernels_grow_with_the_clips_in_turn_only(deep):
    for route, grows in ((together, False), (in_turn, True)):
        one, three = (batch_launches(deep, clips, 0.1, route)["encode"] for clips in (1, 3))
        assert (three.kernels > 2 * one.kernels) == grows
        assert (one == three) != grows


@pytest.mark.slow
def test_codes_of_a_hundred_thousand_entries_are_those_of_single_clips():
    tokenizer = load_tokenizer()
    rate = tokenizer.sampling_rate
    waves = [tone(2 + seed / 3, rate, seed=seed) for seed in range(14)]
    alone = [tokenizer.encode_codes(wave, sampling_rate=rate)["codes"] for wave in waves]
    tokenizer.windows = Windows(frames=512, count=4)
    batch = tokenizer.encode_codes(waves, sampling_rate=rate)["codes"]
    assert sum(codes.size for codes in batch) > 100_000
    equal = np.concatenate([(a == b).ravel() for a, b in zip(alone, batch, strict=True)])
    assert equal.mean() >= 0.9999
