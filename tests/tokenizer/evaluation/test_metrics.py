import math

import numpy as np
import pytest
import scipy.signal
import torch

from tokenizer.evaluation.metrics import (
    buzz,
    code_use,
    log_spectral_distance,
    mel_distance,
    quality,
    si_sdr,
    stft_distance,
)
from tokenizer.training.losses import (
    REPETITION_MIN_HOPS,
    MelDistance,
    band_energy_distance,
    repetition_excess,
    waveform_distortion,
)

RATE = 44_100


def noise(seed: int, length: int = 8000, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, length)).astype(np.float32) * 0.1


def magnitudes(x: np.ndarray, window: int, hop: int) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = scipy.signal.get_window("hann", window)
    return np.abs(np.fft.rfft(frames * hann, axis=-1))


def slaney(rate: int, window: int, bands: int) -> np.ndarray:
    """Mel filters as librosa documents them, one triangle at a time."""

    def to_hz(m: float) -> float:
        return 200 * m / 3 if m < 15 else 1000 * math.exp((m - 15) * math.log(6.4) / 27)

    top = rate / 2
    top_mel = 15 + 27 * math.log(top / 1000) / math.log(6.4)
    edges = [to_hz(top_mel * i / (bands + 1)) for i in range(bands + 2)]
    filters = np.zeros((window // 2 + 1, bands))
    for j in range(bands):
        low, mid, high = edges[j : j + 3]
        for i in range(window // 2 + 1):
            f = i * rate / window
            filters[i, j] = max(0, min((f - low) / (mid - low), (high - f) / (high - mid)))
        filters[:, j] *= 2 / (high - low)
    return filters


def test_si_sdr_of_known_noise():
    target = torch.from_numpy(noise(0)).double()
    error = torch.from_numpy(noise(1)).double()
    error -= (error * target).sum() / target.square().sum() * target
    error *= target.norm() / error.norm() / 10  # 20 dB below, orthogonal
    assert si_sdr((3.7 * (target + error)).float(), target.float()) == pytest.approx(20, abs=1e-3)


def test_si_sdr_averages_channels_and_survives_silence():
    target = torch.from_numpy(noise(0, channels=2))
    estimate = target + 0.01
    both = si_sdr(estimate, target)
    single = [si_sdr(estimate[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert both == pytest.approx(sum(single) / 2)
    assert si_sdr(target, torch.zeros_like(target)) == 0.0


def test_mel_distance_matches_a_formula_in_numpy():
    a, b = noise(0), noise(1) * np.linspace(0, 1, 8000, dtype=np.float32)
    wanted = 0.0
    for window, bands in zip(
        (32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320), strict=True
    ):
        filters = slaney(RATE, window, bands)
        mels = [
            np.log10(np.maximum(magnitudes(x[0], window, window // 4) @ filters, 1e-5))
            for x in (a, b)
        ]
        wanted += np.abs(mels[0] - mels[1]).mean()
    ours = mel_distance(torch.from_numpy(a), torch.from_numpy(b), RATE)
    assert ours == pytest.approx(wanted, rel=1e-3)


def test_mel_distance_is_the_loss_of_training():
    a, b = (torch.from_numpy(noise(seed, channels=2)) for seed in (0, 1))
    assert mel_distance(a, b, RATE) == pytest.approx(
        float(MelDistance(RATE)(a[None], b[None])), rel=1e-5
    )


def test_mel_distance_of_some_scales_is_unbiased():
    a, b = torch.from_numpy(noise(0))[None], torch.from_numpy(noise(1))[None] * 0.3
    mel = MelDistance(RATE)
    parts = [float(mel(a, b, scales=[i])) for i in range(7)]
    assert sum(parts) / 7 == pytest.approx(float(mel(a, b)), rel=1e-5)


def test_mel_distance_of_half_the_frames_is_the_same_mean():
    a, b = (torch.randn(4, 1, 44_100, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    whole = MelDistance(44_100)(a, b)
    half = MelDistance(44_100, overlap=2)(a, b)
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)


def test_stft_and_log_spectral_distance_match_numpy():
    a, b = noise(0), noise(1)
    wanted = 0.0
    for window in (2048, 512):
        x, y = (magnitudes(s[0], window, window // 4) for s in (a, b))
        wanted += np.abs(x - y).mean()
        wanted += np.abs(
            np.log10(np.maximum(x, 1e-5) ** 2) - np.log10(np.maximum(y, 1e-5) ** 2)
        ).mean()
    pair = torch.from_numpy(a), torch.from_numpy(b)
    assert stft_distance(*pair) == pytest.approx(wanted, rel=1e-3)
    x, y = (20 * np.log10(np.maximum(magnitudes(s[0], 2048, 512), 1e-5)) for s in (a, b))
    lsd = np.sqrt(np.square(x - y).mean(axis=1)).mean()
    assert log_spectral_distance(*pair) == pytest.approx(lsd, rel=1e-3)


def test_identical_audio_is_perfect_and_worse_audio_is_worse():
    x = noise(0, channels=2)
    perfect = quality(x, x, RATE)
    assert perfect["mel"] == perfect["stft"] == perfect["lsd"] == 0
    assert perfect["si_sdr"] > 90
    near = quality(x + 0.1 * noise(2, channels=2), x, RATE)
    far = quality(x + noise(2, channels=2), x, RATE)
    assert near["si_sdr"] > far["si_sdr"] + 15
    assert all(near[name] < far[name] for name in ("mel", "stft", "lsd"))


def test_quality_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"\(1, 8000\).*\(1, 7999\)"):
        quality(noise(0), noise(0)[:, :-1], RATE)


HOP = 441


def patterned(hop: int, length: int = 3 * RATE) -> np.ndarray:
    """The same stretch of noise in every frame."""
    return np.tile(noise(3, hop), (1, -(-length // hop)))[:, :length]


def band_autocorrelation(x: np.ndarray, low: float, high: float, hops: tuple[int, ...]) -> float:
    """The largest value near multiples of the hop, by scipy's filters and one FFT."""
    sos = scipy.signal.butter(6, [low, high], "band", fs=RATE, output="sos")
    band = scipy.signal.sosfiltfilt(sos, x[0].astype(np.float64))
    correlation = scipy.signal.correlate(band, band, method="fft")[len(band) - 1 :]
    near = [np.abs(correlation[m * HOP - 3 : m * HOP + 4]).max() for m in hops]
    return max(near) / correlation[0]


def test_buzz_is_low_for_noise_and_one_for_a_repeated_frame():
    for seed in range(3):
        assert buzz(torch.from_numpy(noise(seed, 2 * RATE)), RATE, HOP) < 0.03
        assert buzz(torch.from_numpy(noise(seed, RATE // 2)), RATE, HOP) < 0.06
    for hop in (HOP, HOP / 2, HOP / 3):  # a period of the hop is one of half the hop, too
        assert buzz(torch.from_numpy(patterned(round(hop))), RATE, HOP) > 0.97
    assert buzz(torch.from_numpy(patterned(3 * HOP)), RATE, HOP) > 0.97
    assert buzz(torch.from_numpy(patterned(HOP + 50)), RATE, HOP) < 0.25
    # A hop that is no whole number of samples: 86 frames a second at 48 kHz.
    t = np.arange(3 * 48_000) / 48_000
    comb = sum(np.cos(2 * np.pi * 44_100 / 512 * k * t + k * k) for k in range(60, 130))
    assert buzz(torch.from_numpy(comb[None].astype(np.float32)), 48_000, 48_000 / 86) > 0.9


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_buzz_is_the_autocorrelation_of_the_bands(share):
    x = noise(0, 3 * RATE) + share * patterned(HOP)
    bands = ((5000, 12_000), (12_000, 0.98 * RATE / 2))
    expected = max(band_autocorrelation(x, *band, (1, 2, 3)) for band in bands)
    assert buzz(torch.from_numpy(x), RATE, HOP) == pytest.approx(expected, abs=0.02)


def test_buzz_is_that_of_the_worse_band_with_content_and_the_mean_of_the_channels():
    low, high = (
        scipy.signal.butter(8, 12_000, kind, fs=RATE, output="sos") for kind in ("low", "high")
    )
    mixed = scipy.signal.sosfilt(low, noise(0, 3 * RATE)) + scipy.signal.sosfilt(
        high, patterned(HOP)
    )
    assert buzz(torch.from_numpy(mixed.astype(np.float32)), RATE, HOP) > 0.9
    quiet = mixed.astype(np.float32) * 1e-2
    assert buzz(torch.from_numpy(quiet), RATE, HOP) > 0.9
    silent = np.concatenate([quiet, np.zeros_like(quiet)])
    assert buzz(torch.from_numpy(silent), RATE, HOP) > 0.9
    both = torch.from_numpy(np.concatenate([noise(0, 3 * RATE), patterned(HOP)]))
    assert buzz(both, RATE, HOP) == pytest.approx(0.5, abs=0.03)


def test_repetition_excess_is_the_buzz_that_the_original_does_not_have():
    plain, buzzing = (torch.from_numpy(x)[None] for x in (noise(0, RATE), patterned(HOP)[:, :RATE]))
    silence = torch.zeros_like(plain)
    estimate = torch.cat([plain, buzzing, buzzing, silence, plain]).requires_grad_()
    target = torch.cat([buzzing, buzzing, plain, plain, silence])
    excess = repetition_excess(estimate, target, RATE, HOP)
    assert excess.tolist() == pytest.approx([0, 0, 1, 0, 0], abs=0.05)
    (gradient,) = torch.autograd.grad(excess.sum(), estimate)
    assert gradient.isfinite().all()
    excess = excess.detach()
    less = repetition_excess((estimate - 1e3 * gradient).detach(), target, RATE, HOP)
    assert float(less[2]) < 0.9 * float(excess[2])


def test_buzz_is_undefined_without_highs_in_silence_and_in_short_clips():
    t = np.arange(2 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * t)[None].astype(np.float32)
    short = noise(0, REPETITION_MIN_HOPS * HOP)
    assert not math.isnan(buzz(torch.from_numpy(short), RATE, HOP))
    for x, rate in (
        (tone, RATE),
        (np.zeros((2, RATE), np.float32), RATE),
        (short[:, :-1], RATE),
        (short[:, :0], RATE),
        (noise(0, RATE), 8000),
    ):
        assert math.isnan(buzz(torch.from_numpy(x), rate, HOP * rate / RATE))
        values = quality(x[:, :], x, rate, hop_length=HOP) if x.shape[1] > 2048 else {}
        assert not {"buzz", "buzz_excess"} & values.keys()


def test_buzz_excess_is_what_the_original_does_not_have():
    voice, reconstruction = patterned(HOP), patterned(HOP) + 0.1 * noise(0, 3 * RATE)
    values = quality(reconstruction, voice, RATE, hop_length=HOP)
    assert values["buzz"] > 0.9
    assert abs(values["buzz_excess"]) < 0.03
    values = quality(patterned(HOP), noise(0, 3 * RATE), RATE, hop_length=HOP)
    assert values["buzz_excess"] > 0.9
    silence = np.zeros_like(voice)
    assert quality(voice, silence, RATE, hop_length=HOP)["buzz_excess"] > 0.9


def test_waveform_distortion_is_the_noise_to_signal_ratio():
    target = torch.from_numpy(noise(0))[None]
    loss = waveform_distortion(target * 1.1, target)
    assert float(loss) == pytest.approx(math.log10(0.01 + 1e-4), abs=1e-4)
    quiet = waveform_distortion(target * 1.1e-2, target * 1e-2)
    assert float(quiet) == pytest.approx(float(loss), abs=1e-3)


def test_code_use_of_known_codes():
    codes = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    use = code_use(codes, (4, 4))
    assert use == {"utilization": (1 + 0.25) / 2, "entropy": 1.0, "perplexity": 2.5}


def test_band_energy_distance_is_the_level_in_decades_at_two_resolutions():
    target = torch.from_numpy(noise(0))[None]
    assert float(band_energy_distance(target, target, RATE)) == 0
    halved = band_energy_distance(target / 2, target, RATE)
    assert float(halved) == pytest.approx(2 * math.log10(2), rel=1e-4)
    # Whatever the length: shorter than a window, and than the frames that are averaged.
    for length in (1, 100, 1500):
        short = target[..., :length]
        assert float(band_energy_distance(short / 2, short, RATE)) == pytest.approx(
            float(halved), rel=1e-4
        )
    # An item's distance does not depend on the others.
    pair = torch.cat([target, target]), torch.cat([target / 2, target * 0.9])
    each = band_energy_distance(pair[1], pair[0], RATE)
    assert float(each[0]) == pytest.approx(float(halved), rel=1e-5)


def test_energy_asks_for_noise_as_loud_as_the_original_and_the_mel_distance_for_less():
    target, other = (torch.from_numpy(noise(seed))[None] for seed in (0, 1))
    gains = torch.linspace(0.7, 1.3, 25)
    mel = MelDistance(RATE)
    by_mel = [float(mel(other * g, target)) for g in gains]
    by_energy = [float(band_energy_distance(other * g, target, RATE)) for g in gains]
    level = float(target.std() / other.std())
    assert float(gains[np.argmin(by_energy)]) == pytest.approx(level, abs=0.03)
    assert np.argmin(by_mel) <= np.argmin(by_energy)
