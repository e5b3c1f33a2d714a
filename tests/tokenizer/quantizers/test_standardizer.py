import pytest
import torch
from hypothesis import given, settings, strategies as st

from tokenizer.quantizers.standardizer import MODES, RELATIVE_FLOOR, Standardizer


def _data(rows=400, dim=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=g)
    return torch.randn(rows, dim, generator=g) @ mixing + 5 * torch.randn(dim, generator=g)


def _metric(dim=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(2 * dim, dim, generator=g)
    return a.T @ a


def _fitted(mode, x, metric=None):
    if mode == "decoder" and metric is None:
        metric = _metric(x.shape[1])
    return Standardizer(x.shape[1], mode).fit(x, metric)


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 40), dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_inverse_undoes_forward(mode, rows, dim, seed):
    x = _data(rows, dim, seed)
    s = _fitted(mode, x)
    u = s(x)
    assert u.dtype == torch.float32
    assert u.isfinite().all()
    torch.testing.assert_close(s.inverse(u), x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_each_mode_does_what_it_says():
    x = _data(5000)
    assert torch.equal(_fitted("none", x)(x), x)

    u = _fitted("scalar", x)(x)
    assert abs(float(u.square().mean()) - 1) < 1e-4
    ratio = u.std(0) / x.std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(6), rtol=1e-4, atol=0)

    u = _fitted("channel", x)(x)
    torch.testing.assert_close(u.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(6), atol=1e-4, rtol=0)

    u = _fitted("whiten", x)(x)
    torch.testing.assert_close(u.T @ u / len(u), torch.eye(6), atol=1e-3, rtol=0)


def test_decoder_mode_measures_the_metric():
    x, metric = _data(), _metric()
    s = _fitted("decoder", x, metric)
    u = s(x).double()
    d = x[:50, None].double() - x[None, :50].double()
    expected = torch.einsum("abi,ij,abj->ab", d, metric.double(), d)
    actual = (u[:50, None] - u[None, :50]).square().sum(-1)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_decoder_mode_raises_small_eigenvalues():
    direction = torch.tensor([3.0, 4.0]) / 5
    s = _fitted("decoder", _data(dim=2), 7 * direction.outer(direction))
    values = torch.linalg.eigvalsh(s.matrix.double()).square()
    torch.testing.assert_close(
        values, torch.tensor([7 * RELATIVE_FLOOR, 7.0]).double(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("mode", ["scalar", "channel", "whiten"])
def test_constant_channels_do_not_blow_up(mode):
    x = _data()
    x[:, 2] = 3.3
    s = _fitted(mode, x)
    unseen = x.clone()
    unseen[:, 2] = 4.3
    # The floor allows a whitened constant channel a gain of a thousand, relative to the others.
    assert float(s(unseen).abs().max()) < 2000
    torch.testing.assert_close(s.inverse(s(x)), x, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("mode", ["scalar", "channel", "whiten"])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_data_without_variance_keep_their_scale(mode, rows):
    x = torch.tensor([[0.1, -7.7, 1e6]]).expand(rows, 3)
    s = _fitted(mode, x)
    torch.testing.assert_close(s(x + 1), torch.ones(rows, 3), atol=0.2, rtol=0)


def test_zero_metric_is_the_identity():
    s = _fitted("decoder", _data(), torch.zeros(6, 6))
    assert torch.equal(s.matrix, torch.eye(6))


def test_channels_far_beneath_the_others_get_the_smallest_scale():
    x = _data(dim=2) * torch.tensor([1.0, 1e-6])
    s = _fitted("channel", x)
    assert s.scale[0] == s.scale[1]


@pytest.mark.parametrize("mode", MODES)
def test_state_survives_saving_bit_for_bit(mode):
    x = _data()
    s = _fitted(mode, x)
    other = Standardizer(6, mode)
    other.load_state_dict(s.state_dict())
    assert torch.equal(other(x), s(x))
    assert torch.equal(other.inverse(x), s.inverse(x))


@pytest.mark.parametrize("mode", MODES)
def test_float32_under_autocast_and_for_half_input(mode):
    x = _data()
    metric = _metric() if mode == "decoder" else None
    s = _fitted(mode, x, metric)
    expected = s(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(s(x), expected)
        assert torch.equal(_fitted(mode, x, metric)(x), expected)
        u = s(x.half())
        assert u.dtype == s.inverse(u.half()).dtype == torch.float32
    assert torch.equal(u, s(x.half().float()))


def test_fitting_again_forgets():
    first, second = _data(seed=0), _data(seed=1)
    again = _fitted("whiten", first).fit(second)
    for a, b in zip(again.buffers(), _fitted("whiten", second).buffers(), strict=True):
        assert torch.equal(a, b)


def test_errors_name_the_fault():
    x = _data()
    with pytest.raises(ValueError, match="'colour'"):
        Standardizer(6, "colour")
    with pytest.raises(ValueError, match="dim is 0"):
        Standardizer(0, "none")
    with pytest.raises(RuntimeError, match="not fitted"):
        Standardizer(6, "none")(x)
    with pytest.raises(ValueError, match=r"\(400, 6\)"):
        Standardizer(5, "none").fit(x)
    with pytest.raises(ValueError, match="at least one"):
        Standardizer(6, "none").fit(x[:0])
    with pytest.raises(ValueError, match="finite"):
        Standardizer(6, "none").fit(x / 0)
    with pytest.raises(ValueError, match="none was given"):
        Standardizer(6, "decoder").fit(x)
    with pytest.raises(ValueError, match="'channel'"):
        Standardizer(6, "channel").fit(x, _metric())
    with pytest.raises(ValueError, match=r"\[6, 6\]"):
        Standardizer(6, "decoder").fit(x, _metric(5))
    with pytest.raises(ValueError, match="symmetric"):
        Standardizer(6, "decoder").fit(x, torch.ones(6, 6).tril())
    with pytest.raises(ValueError, match="semidefinite"):
        Standardizer(6, "decoder").fit(x, -torch.eye(6))
    with pytest.raises(ValueError, match="finite"):
        Standardizer(6, "decoder").fit(x, _metric() * torch.nan)
