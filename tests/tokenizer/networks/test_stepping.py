"""Networks block by block, and streams: the bits of the whole, at the latency that is stated."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from models import (
    CODEBOOKS,
    HOP,
    RATE,
    REFUSED,
    flat_levels,
    make_stereo_autoencoder,
    make_tokenizer,
    tone,
)

from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.networks.stepping import CPU_ROWS, SMALLER, BlockStage

# Codes of one beam and of another, and a model for live use, share everything else.
GAIN = 0.07


@cache
def models(kind: str) -> LatentTokenizer:
    tokenizer = make_tokenizer(beam_width=3 if kind == "beam" else 1)
    if kind in ("plain", "beam"):
        return tokenizer
    if kind == "stereo":
        return make_tokenizer(make_stereo_autoencoder(lookahead=1))
    torch.manual_seed(1)
    # One with envelope latents, one without.
    config = tokenizer.config.autoencoder | {"lookahead": int(kind), "envelope_dim": 3 * int(kind)}
    live = LappedAutoencoder.from_config({k: v for k, v in config.items() if k != "kind"})
    live.initialize(torch.diag(torch.linspace(2, 0.01, HOP)), flat_levels(HOP))
    with torch.no_grad():  # the networks start near zero: give them something to do
        torch.nn.init.normal_(live.encoder.head.weight, std=0.3)
        torch.nn.init.normal_(live.decoder.head.weight, std=0.3)
    other = LatentTokenizer.from_autoencoder(live)
    return other.set_quantizer(tokenizer.quantizer).eval()


def chunked(wave: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    places = sorted({min(cut, wave.shape[1]) for cut in cuts})
    return np.split(wave, places, axis=1)


def encode(tokenizer: LatentTokenizer, chunks: list[np.ndarray], **options) -> np.ndarray:
    stream = tokenizer.stream_encoder(gain=GAIN, num_channels=len(chunks[0]), **options)
    out = [stream.push(chunk) for chunk in chunks] + [stream.finish()]
    assert stream.num_samples == sum(c.shape[1] for c in chunks) or "sampling_rate" in options
    return np.concatenate(out, axis=1)


def decode(tokenizer: LatentTokenizer, pieces: list[np.ndarray], channels: int) -> np.ndarray:
    latents = pieces[0].dtype.kind == "f"
    stream = tokenizer.stream_decoder(gain=GAIN, num_channels=channels, latents=latents)
    out = [stream.push(piece) for piece in pieces] + [stream.finish()]
    return np.concatenate(out, axis=1)


@settings(deadline=None, max_examples=15)
@given(
    kind=st.sampled_from(["plain", "beam", "0", "1", "stereo"]),
    length=st.one_of(st.integers(1, 3 * HOP), st.integers(1, CPU_ROWS * HOP * 5 // 4)),
    channels=st.integers(1, 2),
    cuts=st.lists(st.integers(0, CPU_ROWS * HOP), max_size=6),
    seed=st.integers(0, 5),
)
def test_any_chunks_give_the_codes_and_samples_of_the_whole(kind, length, channels, cuts, seed):
    tokenizer = models(kind)
    wave = tone(length / RATE, channels=channels, seed=seed)
    row = tokenizer.encode_codes(wave, sampling_rate=RATE, gain=GAIN)
    codes = encode(tokenizer, chunked(wave, cuts))
    assert codes.dtype == row["codes"].dtype
    np.testing.assert_array_equal(codes.reshape(-1, CODEBOOKS), row["codes"])
    pieces = np.split(codes, sorted({min(c // HOP, codes.shape[1]) for c in cuts}), axis=1)
    audio = decode(tokenizer, pieces, channels)[:, :length]
    np.testing.assert_array_equal(audio, tokenizer.decode_codes(row))


@pytest.mark.parametrize("kind", ["plain", "1", "stereo"])
def test_one_sample_at_a_time(kind):
    tokenizer = models(kind)
    channels = tokenizer.autoencoder.num_channels
    wave = tone((3 * HOP + 7) / RATE, channels=channels)
    row = tokenizer.encode_latents(wave, sampling_rate=RATE, gain=GAIN)
    latents = encode(tokenizer, np.split(wave, wave.shape[1], axis=1), latents=True)
    np.testing.assert_array_equal(latents[0], row["latents"])
    audio = decode(tokenizer, np.split(latents, latents.shape[1], axis=1), channels)
    np.testing.assert_array_equal(audio[:, : wave.shape[1]], tokenizer.decode_latents(row))
    # On tensors, too.
    encoded = tokenizer.encode(torch.from_numpy(wave)[None], gain=torch.tensor([GAIN]))
    np.testing.assert_array_equal(encoded.latents[0].T.numpy(), row["latents"])


def test_resampled_streams_are_the_resampled_whole():
    tokenizer = models("plain")
    wave = tone(0.5, rate=11_025)
    row = tokenizer.encode_codes(wave, sampling_rate=11_025, gain=GAIN)
    codes = encode(tokenizer, chunked(wave, [1, 2, 500, 3000]), sampling_rate=11_025)
    np.testing.assert_array_equal(codes[0], row["codes"])


@pytest.mark.parametrize(("kind", "frames"), [("plain", 14), ("0", 2), ("1", 4)])
def test_latency_is_what_is_stated_to_the_sample(kind, frames):
    # Kernels of 7 in 2 blocks on either side: 2 * 6 frames, and 2 for the lapped windows.
    tokenizer = models(kind)
    assert tokenizer.latency == pytest.approx(frames * HOP / RATE)
    assert frames * 0.01 <= 0.04 or kind == "plain"  # at 100 frames a second
    wave = tone(0.2)
    encoder = tokenizer.stream_encoder(gain=GAIN, latents=True)
    decoder = tokenizer.stream_decoder(gain=GAIN, latents=True)
    assert encoder.latency + decoder.latency == pytest.approx(tokenizer.latency)
    due = frames * HOP
    for n in range(wave.shape[1]):
        out = decoder.push(encoder.push(wave[:, n : n + 1]))
        # Sample n arrives; whole frames leave, the earlier by the latency.
        expected = max(0, (n + 1 - due) // HOP * HOP + HOP) if n + 1 >= due else 0
        assert decoder.num_samples == expected, n
        assert out.shape[1] in (0, HOP)


@torch.inference_mode()
@pytest.mark.parametrize("lookahead", [None, 0, 1, 4, 99])
def test_the_network_sees_no_further_than_its_lookahead(lookahead):
    torch.manual_seed(0)
    model = LappedAutoencoder(
        LappedConfig(8000, 20, 6, 12, 2, 12, 2, kernel_size=5, lookahead=lookahead)
    ).eval()
    for head in (model.encoder.head, model.decoder.head):
        torch.nn.init.normal_(head.weight, std=0.3)
    ahead = 4 if lookahead is None else min(lookahead, 4)
    assert (model.encoder.lookahead, model.decoder.lookahead) == (ahead, ahead + 1)
    x = torch.randn(1, 1, 800, generator=torch.Generator().manual_seed(0))
    z = model.encoder(x)
    y = model.decoder(z)
    for distance in range(-1, 7):
        other = x.clone()
        other[..., (15 + distance) * 20 : (16 + distance) * 20] += 1
        same = torch.equal(model.encoder(other)[..., 15], z[..., 15])
        assert same == (distance > ahead)
        other = z.clone()
        other[..., 15 + distance] += 1
        same = torch.equal(model.decoder(other)[..., 300:320], y[..., 300:320])
        assert same == (distance > ahead + 1)


@torch.inference_mode()
@pytest.mark.parametrize(("lookahead", "channels"), [(None, 1), (0, 1), (1, 1), (1, 2)])
def test_steps_are_the_network(lookahead, channels):
    torch.manual_seed(0)
    sizes = {"kernel_size": 5, "lookahead": lookahead, "channels": channels}
    model = LappedAutoencoder(LappedConfig(8000, 20, 6, 12, 2, 12, 2, **sizes)).eval()
    for head in (model.encoder.head, model.decoder.head):
        torch.nn.init.normal_(head.weight, std=0.3)
    x = torch.randn(1, channels, 150 * 20 + 3, generator=torch.Generator().manual_seed(0))
    z = model.encoder(x)
    samples = x[0, 0] if channels == 1 else x[0].T
    torch.testing.assert_close(model.encoder.stepper().push(samples, final=True), z[0].T)
    level = torch.full((1,), 0.3)
    audio = model.decoder.stepper(0.3).push(z[0].T, final=True)
    expected = model.decoder(z, level)[0]
    expected = expected[0] if channels == 1 else expected.T
    torch.testing.assert_close(audio, expected, atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 2 * CPU_ROWS + 150), max_size=6),
    eager=st.booleans(),
    wrong_below=st.sampled_from([0, *SMALLER, CPU_ROWS]),
)
def test_a_stage_gives_the_rows_of_whole_blocks_however_they_arrive(cuts, eager, wrong_below):
    computed = 0

    def function(window: torch.Tensor) -> torch.Tensor:
        """Each row three times and its next; blocks below a size round differently."""
        nonlocal computed
        computed += len(window) - 2
        out = window[1:-1] * 3 + window[2:]
        if len(window) - 2 < wrong_below:
            out[-1] += 1e-6
        return out

    rows = torch.randn(2 * CPU_ROWS + 150, 2, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.zeros(1, 2), rows, torch.zeros(1, 2)])
    cpu = torch.device("cpu")
    stage = BlockStage(function, "", (2, 2), context=(1, 1), device=cpu, agreements={})
    places = sorted(cuts)
    results = []
    for piece, arrived in zip(rows.tensor_split(places), [*places, len(rows)], strict=True):
        results.append(stage.push(piece, eager=eager))
        known = max(arrived - 1, 0)  # a row needs its next
        expected = known if eager else known // CPU_ROWS * CPU_ROWS
        assert sum(map(len, results)) == expected
    computed = 0
    results.append(stage.push(rows[:0], final=True))
    assert torch.equal(torch.cat(results), 3 * padded[1:-1] + padded[2:])
    # The last rows cost a whole block only where no smaller one gives the same bits.
    if eager and wrong_below < CPU_ROWS:
        assert computed == min(size for size in SMALLER if size >= wrong_below)


def test_bad_chunks_are_refused():
    tokenizer = models("plain")
    stream = tokenizer.stream_encoder()
    assert stream.gain.tolist() == [np.float32(tokenizer.default_gain)]
    for chunk, message in (
        (np.zeros((2, 5), np.float32), r"\[2, 5\].*\[1, n\]"),
        (np.zeros(5, np.int16), "int16"),
        (np.array([0.0, np.nan]), "NaN"),
    ):
        with pytest.raises(REFUSED, match=message):
            stream.push(chunk)
    with pytest.raises(ValueError, match="no samples"):
        stream.finish()
    stream.push(np.zeros(3))
    stream.finish()
    with pytest.raises(RuntimeError, match="finished"):
        stream.push(np.zeros(3))
    for gain in (0.0, -1.0, np.inf, [1.0, 2.0], "loud"):
        with pytest.raises(REFUSED, match="gain"):
            tokenizer.stream_encoder(gain=gain)
    decoder = tokenizer.stream_decoder()
    with pytest.raises(ValueError, match="no frames"):
        decoder.finish()
    with pytest.raises(ValueError, match=r"\[1, t, n\]"):
        decoder.push(np.zeros((2, 3, 4), np.int64))
    with pytest.raises(ValueError, match="integers"):
        decoder.push(np.zeros((1, 3, 4), np.float32))
    decoder.push(np.zeros((1, 3, 2), np.int64))
    with pytest.raises(ValueError, match=r"\[1, t, 2\]"):
        decoder.push(np.zeros((1, 3, 4), np.int64))


def test_the_field_is_in_the_configuration_only_where_it_is_used():
    assert "lookahead" not in models("plain").config.autoencoder
    assert "envelope_dim" not in models("0").config.autoencoder
    assert models("1").config.autoencoder["lookahead"] == 1
    assert models("1").config.autoencoder["envelope_dim"] == 3
    with pytest.raises(ValueError, match=r"lookahead .*-1"):
        LappedConfig(8000, 20, 6, 12, 2, 12, 2, lookahead=-1)
