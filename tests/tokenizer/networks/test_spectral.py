import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings, strategies as st

from tokenizer.networks.spectral import imdct, mdct, mel_filters, stft_magnitude


def mdct_by_definition(x: np.ndarray, hop: int) -> np.ndarray:
    """Princen and Bradley's sum, written out, in float64."""
    blocks = -(-len(x) // hop)
    padded = np.concatenate([np.zeros(hop), x, np.zeros((blocks + 1) * hop - len(x))])
    frames = []
    for t in range(blocks + 1):
        frame = padded[t * hop : (t + 2) * hop]
        coefficients = []
        for k in range(hop):
            total = 0.0
            for n in range(2 * hop):
                window = math.sin(math.pi / (2 * hop) * (n + 0.5))
                phase = math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5)
                total += window * frame[n] * math.cos(phase)
            coefficients.append(math.sqrt(2 / hop) * total)
        frames.append(coefficients)
    return np.array(frames)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 17, 18])
@pytest.mark.parametrize("hop", [5, 6])
def test_mdct_is_its_definition(length, hop):
    x = np.random.default_rng(length).normal(size=length)
    ours = mdct(torch.from_numpy(x).float(), hop).numpy()
    np.testing.assert_allclose(ours, mdct_by_definition(x, hop), atol=2e-6)


@given(st.integers(1, 70), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_imdct_inverts_mdct_and_energy_is_kept(length, hop):
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    c = mdct(x, hop)
    assert c.shape == (2, -(-length // hop) + 1, hop)
    y = imdct(c)
    torch.testing.assert_close(y[:, :length], x, atol=2e-6, rtol=1e-5)
    assert float(y[:, length:].abs().sum()) < 1e-4
    torch.testing.assert_close(c.square().sum(), x.square().sum(), rtol=1e-4, atol=1e-5)


def test_mdct_stays_in_float32_under_autocast():
    x = torch.randn(1, 441, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        c = mdct(x, 21)
        y = imdct(c)
    assert c.dtype == torch.float32
    torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-5)


def test_mel_filters_are_triangles_of_unit_area():
    rate, window, bands = 44_100, 2048, 20
    filters = mel_filters(rate, window, bands, torch.device("cpu")).double().numpy()
    bin_width = rate / window
    # Wide filters cover many bins: their Riemann sum is their area.
    np.testing.assert_allclose(filters[:, 3:].sum(0) * bin_width, 1, rtol=0.02)
    for band in range(bands):
        column = filters[:, band]
        peak = column.argmax()
        assert (np.diff(column[: peak + 1]) >= 0).all()
        assert (np.diff(column[peak:]) <= 0).all()


def test_mel_filters_match_published_slaney_values():
    # librosa.filters.mel(sr=22050, n_fft=512, n_mels=10): centre frequencies of Slaney's scale.
    filters = mel_filters(22_050, 512, 10, torch.device("cpu")).numpy()
    mels = np.linspace(0, 15 + 27 * np.log(11_025 / 1000) / np.log(6.4), 12)
    hz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
    peaks = filters.argmax(0) * 22_050 / 512
    assert np.abs(peaks - hz[1:-1]).max() <= 22_050 / 512


@pytest.mark.parametrize(("length", "window"), [(5000, 512), (1000, 32), (3001, 2048)])
def test_stft_magnitude_matches_scipy(length, window):
    x = np.random.default_rng(0).normal(size=length)
    ours = stft_magnitude(torch.from_numpy(x).float(), window, window // 4).numpy()
    padded = np.pad(x, window // 2, mode="reflect")
    hann = scipy.signal.get_window("hann", window)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 4]
    wanted = np.abs(np.fft.rfft(frames * hann, axis=-1)).T
    np.testing.assert_allclose(ours, wanted, atol=2e-4)


def test_stft_magnitude_of_one_sample_and_gradient_of_silence():
    assert stft_magnitude(torch.ones(1, 1), 2048, 512).isfinite().all()
    silence = torch.zeros(1, 4096, requires_grad=True)
    stft_magnitude(silence, 512, 128).sum().backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_transforms_first_used_in_inference_mode_can_be_trained_through_later():
    with torch.inference_mode():
        mdct(torch.ones(1, 100), 17)
        mel_filters(12_345, 64, 7, torch.device("cpu"))
    x = torch.ones(1, 100, requires_grad=True)
    magnitude = stft_magnitude(imdct(mdct(x, 17)), 64, 16)
    (magnitude.mT @ mel_filters(12_345, 64, 7, torch.device("cpu"))).sum().backward()
    assert x.grad is not None
