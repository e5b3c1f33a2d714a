import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from tokenizer.quantizers import QUANTIZERS, build_quantizer, quantizer_class
from tokenizer.quantizers.kmeans import block_rows
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.search import Scores, beam, greedy
from tokenizer.quantizers.sources import MemmapSource, TensorSource
from tokenizer.quantizers.standardizer import MODES

# With run-time type checks on, they are the first to refuse a wrong shape or type.
REFUSED = (ValueError, TypeCheckError)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _latents(rows=3000, dim=8, seed=0):
    """Correlated, of uneven variance, away from zero."""
    g = _generator(seed)
    mixing = torch.randn(dim, dim, generator=_generator(99)) * torch.logspace(0, -1, dim)
    return torch.randn(rows, dim, generator=g) @ mixing + 2


def _metric(dim=8):
    a = torch.randn(3 * dim, dim, generator=_generator(98)) * torch.logspace(-1, 0, dim)
    return a.T @ a


def _fit(x, codebooks=4, size=16, mode="none", *, seed=0, **options):
    quantizer = ResidualVectorQuantizer(
        x.shape[1], codebooks, size, standardization=mode, **options
    )
    metric = _metric(x.shape[1]) if mode == "decoder" else None
    return quantizer.fit(TensorSource(x), generator=_generator(seed), metric=metric)


@pytest.fixture(scope="module", params=MODES)
def fitted(request):
    return _fit(_latents(), mode=request.param)


def _weights(quantizer):
    """W of every stage, float64, from the standardizers' buffers."""
    matrices = []
    for k in range(quantizer.num_codebooks):
        s = quantizer.standardizers[min(k, len(quantizer.standardizers) - 1)]
        matrices.append((s.matrix if s.has_matrix else s.scale.diag()).double())
    return matrices


def _reference_codes(quantizer, x):
    """Greedy codes by a float64 loop, and by how much the nearest entry is nearer than the next."""
    codes, margins = [], []
    residual = x.double()
    for book, w in zip(quantizer.codebooks.double(), _weights(quantizer), strict=True):
        distances = ((residual[:, None] - book) @ w).square().sum(-1)
        two = distances.topk(2, largest=False)
        codes.append(two.indices[:, 0])
        margins.append((two.values[:, 1] - two.values[:, 0]) / distances.mean(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, 1), torch.stack(margins, 1)


def _error(quantizer, x, codes):
    """Mean squared error in the metric of the last stage."""
    w = _weights(quantizer)[-1]
    return float(((x - quantizer.decode(codes)).double() @ w).square().sum(1).mean())


# Encoding and decoding


def test_greedy_codes_equal_a_float64_loop(fitted):
    x = _latents(700, seed=1)
    expected, margins = _reference_codes(fitted, x)
    # Past a true tie both choices are right, and later stages see another residual.
    clear = (margins > 1e-4).cummin(1).values
    assert clear.float().mean() > 0.98
    codes = fitted.encode(x)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[clear], expected[clear])


def test_decoding_is_a_sum_of_rows(fitted):
    codes = fitted.encode(_latents(50, seed=1))
    for n in range(1, 5):
        expected = sum(fitted.codebooks[k, codes[:, k]].double() for k in range(n))
        z = fitted.decode(codes[:, :n])
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)


def test_greedy_codes_of_fewer_codebooks_are_a_prefix(fitted):
    x = _latents(300, seed=1)
    codes = fitted.encode(x)
    for n in range(1, 5):
        assert torch.equal(fitted.encode(x, n), codes[:, :n])


@pytest.mark.parametrize("width", [1, 3])
def test_codes_of_a_frame_do_not_depend_on_its_company(fitted, width):
    x = _latents(2 * block_rows(16) + 5, seed=1)
    codes = fitted.encode(x, beam_width=width)
    parts = ((0, 1), (0, 7), (0, 30), (5, 90), (7, 200), (3, 300))
    for start, stop in (*parts, (1020, 1030), (1024, 2053), (2052, 2053)):
        assert torch.equal(fitted.encode(x[start:stop], beam_width=width), codes[start:stop])
    assert fitted.encode(x[:0], 2, width).shape == (0, 2)
    assert fitted.decode(codes[:0]).shape == (0, 8)


def test_a_beam_of_one_is_greedy(fitted):
    shift, common, stages = fitted.search_space(fitted.num_codebooks)
    x = _latents(64, seed=1) - shift
    x = x if common is None else common.project(x)
    scores = Scores(64, stages[0], 32)
    counts = np.full(len(x), len(stages))
    assert torch.equal(beam(x, counts, stages, 1, scores), greedy(x, stages, scores))


def _reference_beam(quantizer, x, width):
    """Codes of a float64 beam, and by how much the choices of each stage were clear."""
    error, codes = x.double()[:, None], x.new_zeros(len(x), 1, 0, dtype=torch.int64)
    clear = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for book, w in zip(quantizer.codebooks.double(), _weights(quantizer), strict=True):
        left = error[:, :, None] - book  # [M, H, S, D]
        distances = (left @ w).square().sum(-1).flatten(1)
        kept = min(width, distances.shape[1])
        nearest = distances.topk(min(kept + 1, distances.shape[1]), largest=False)
        gaps = nearest.values.diff(dim=1)
        clear = clear.minimum(gaps.amin(1) / distances.mean(1))
        best = nearest.indices[:, :kept]
        index = best[..., None].expand(-1, -1, x.shape[1])
        error = left.flatten(1, 2).gather(1, index)
        history = codes.gather(1, (best // len(book))[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([history, (best % len(book))[..., None]], 2)
    return codes[:, 0], clear


@pytest.mark.parametrize("width", [2, 5])
def test_a_beam_finds_what_a_float64_beam_does(fitted, width):
    x = _latents(600, seed=1)
    expected, clear = _reference_beam(fitted, x, width)
    assert (clear > 1e-5).float().mean() > 0.9
    codes = fitted.encode(x, beam_width=width)
    assert torch.equal(codes[clear > 1e-5], expected[clear > 1e-5])


def test_a_beam_lowers_the_error(fitted):
    x = _latents(1000, seed=1)
    errors = [_error(fitted, x, fitted.encode(x, beam_width=w)) for w in (1, 4, 16)]
    assert errors[1] < 0.99 * errors[0]
    assert errors[2] <= errors[1]


@pytest.mark.parametrize("size", [2, 3, 33, 40])
def test_a_full_beam_finds_the_best_of_all_codes(size):
    quantizer = _fit(_latents(400, 3), 2, size, "decoder")
    x = _latents(60, 3, seed=1)
    every = torch.tensor(list(product(range(size), repeat=2)))
    w = _weights(quantizer)[-1]
    candidates = quantizer.decode(every).double()
    best = torch.cdist(x.double() @ w, candidates @ w).min(1).values
    codes = quantizer.encode(x, beam_width=size)
    found = ((x - quantizer.decode(codes)).double() @ w).norm(dim=1)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def test_the_default_beam_is_the_constructors():
    x = _latents(500)
    quantizer = _fit(x, beam_width=4)
    assert torch.equal(quantizer.encode(x), quantizer.encode(x, beam_width=4))
    assert not torch.equal(quantizer.encode(x), quantizer.encode(x, beam_width=1))


def test_float32_under_autocast_and_for_half_input(fitted):
    x = _latents(200, seed=1).half()
    plain = fitted.encode(x.float()), fitted.encode(x.float(), beam_width=3)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(fitted.encode(x), plain[0])
        assert torch.equal(fitted.encode(x, beam_width=3), plain[1])
        assert fitted.decode(plain[0]).dtype == torch.float32


# Fitting


def test_error_never_rises_with_more_codebooks(fitted):
    x = _latents()
    codes = fitted.encode(x)
    if fitted.standardization in ("none", "scalar", "decoder"):
        errors = [_error(fitted, x, codes[:, :n]) for n in range(1, 5)]
        assert errors == sorted(errors, reverse=True)
    noise = fitted.noise_levels.tolist()
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] < 0.5


def test_report_measures_the_latents(fitted):
    x = _latents()
    codes = fitted.encode(x)
    report = fitted.report
    deviation = float((x - x.mean(0)).double().square().mean())
    assert report.frames == len(x)
    for k in range(4):
        counts = np.bincount(codes[:, k], minlength=16)
        assert fitted.code_counts[k].tolist() == counts.tolist()
        assert report.utilization[k] == pytest.approx((counts > 0).mean())
        share = counts[counts > 0] / counts.sum()
        assert report.perplexity[k] == pytest.approx(math.exp(-(share * np.log(share)).sum()))
        mse = float((x - fitted.decode(codes[:, : k + 1])).double().square().mean())
        assert report.noise_levels[k] == pytest.approx(math.sqrt(mse / deviation), rel=1e-4)
        assert report.distortion_db[k] == pytest.approx(10 * math.log10(mse / deviation), abs=1e-2)
    assert json.loads(json.dumps(report.to_dict()))["noise_levels"] == list(report.noise_levels)
    assert len(report.table().splitlines()) == 4 + 4


def test_the_metric_decides_which_errors_count():
    x = _latents()
    plain, weighted = _fit(x), _fit(x, mode="decoder")
    held_out = _latents(1000, seed=1)
    root = torch.linalg.cholesky(_metric().double())
    heard = [
        float(((held_out - q.decode(q.encode(held_out))).double() @ root).square().sum())
        for q in (plain, weighted)
    ]
    assert heard[1] < 0.9 * heard[0]


def test_comparable_to_faiss_on_held_out_latents():
    import faiss

    x, held_out = _latents(20_000, 16), _latents(4000, 16, seed=1)
    reference = faiss.ResidualQuantizer(16, 4, 6)
    reference.max_beam_size = 1
    reference.train(x.numpy())
    theirs = reference.decode(reference.compute_codes(held_out.numpy()))
    ours = _fit(x, 4, 64)
    decoded = ours.decode(ours.encode(held_out))
    error = float((held_out - torch.from_numpy(theirs)).square().mean())
    assert float((held_out - decoded).square().mean()) <= 1.02 * error


def test_a_source_larger_than_the_sample(tmp_path):
    x = _latents(20_000)
    np.save(tmp_path / "z.npy", x.numpy())
    source = MemmapSource(tmp_path / "z.npy")
    part = ResidualVectorQuantizer(8, 3, 16, max_points=2000)
    part.fit(source, generator=_generator())
    # The sample is smaller; the report is about everything.
    assert part.report.frames == 20_000
    assert part.report.noise_levels[-1] == pytest.approx(
        _fit(x, 3).report.noise_levels[-1], rel=0.03
    )
    memory = ResidualVectorQuantizer(8, 3, 16, max_points=2000)
    memory.fit(TensorSource(x), generator=_generator())
    assert torch.equal(part.codebooks, memory.codebooks)


def test_fitting_again_forgets(fitted):
    first, second = _latents(500), _latents(500, seed=1)
    mode = fitted.standardization
    again = _fit(first, mode=mode)
    again.fit(
        TensorSource(second),
        generator=_generator(),
        metric=_metric() if mode == "decoder" else None,
    )
    assert all(map(torch.equal, again.buffers(), _fit(second, mode=mode).buffers()))


def test_the_source_is_left_alone():
    x = _latents(100)
    before = x.clone()
    _fit(x)
    assert torch.equal(x, before)


def test_a_distant_mean_costs_no_precision():
    x = _latents()
    near, far = _fit(x), _fit(x + 3000.0)
    assert far.noise_levels[-1] == pytest.approx(float(near.noise_levels[-1]), rel=0.05)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 50),
    dim=st.integers(1, 5),
    codebooks=st.integers(1, 4),
    size=st.sampled_from([1, 2, 3, 33]),
    mode=st.sampled_from(MODES),
    distinct=st.integers(1, 50),
    width=st.integers(1, 40),
)
def test_any_shape_and_degenerate_latents(rows, dim, codebooks, size, mode, distinct, width):
    x = _latents(rows, dim)[torch.arange(rows) % distinct]
    quantizer = _fit(x, codebooks, size, mode)
    codes = quantizer.encode(x, beam_width=width)
    assert codes.shape == (rows, codebooks)
    z = quantizer.decode(codes)
    assert z.isfinite().all()
    assert quantizer.report.frames == rows
    assert all(0 <= v <= 1.01 for v in quantizer.report.noise_levels)
    if min(rows, distinct) <= size and rows <= size:
        torch.testing.assert_close(z, x, rtol=0, atol=1e-3 * float(x.abs().max()))


def test_a_large_odd_codebook():
    x = _latents(1500)
    quantizer = _fit(x, 2, 1000)
    assert int(quantizer.encode(x, beam_width=2).max()) > 900
    assert quantizer.report.utilization[0] > 0.9


# Storing


def test_codebooks_stored_in_half_precision(fitted):
    half = build_quantizer({"kind": "rvq", **fitted.to_config()})
    half.load_state_dict(fitted.state_dict())
    half.half()
    assert half.codebooks.dtype == torch.float16
    x = _latents(300, seed=1)
    full = build_quantizer({"kind": "rvq", **fitted.to_config()})
    full.load_state_dict(half.state_dict())
    codes = full.encode(x)
    assert torch.equal(half.encode(x), codes)
    assert half.decode(codes).dtype == torch.float32
    assert torch.equal(half.decode(codes), full.decode(codes))
    assert half.report.frames == fitted.report.frames


def test_building_by_kind():
    assert quantizer_class("rvq") is ResidualVectorQuantizer
    assert all(quantizer_class(kind).kind == kind for kind in QUANTIZERS)
    quantizer = build_quantizer(
        {"kind": "rvq", "dim": 3, "num_codebooks": 2, "codebook_size": 5, "beam_width": 7}
    )
    assert quantizer.codebook_sizes == (5, 5)
    assert quantizer.to_config()["beam_width"] == 7
    with pytest.raises(ValueError, match=r"'unheard'.*rvq.*register_quantizer"):
        build_quantizer({"kind": "unheard"})
    with pytest.raises(ValueError, match="colour"):
        build_quantizer({**quantizer.to_config(), "kind": "rvq", "colour": 1})


# Bad input


def test_unfitted_quantizers_say_how_to_fit_them():
    quantizer = ResidualVectorQuantizer(8, 4, 16)
    for use in (
        lambda: quantizer.encode(_latents(5)),
        lambda: quantizer.decode(torch.zeros(5, 4, dtype=torch.int64)),
        lambda: quantizer.report,
    ):
        with pytest.raises(RuntimeError, match=r"`latok fit`.*\.fit\(\)"):
            use()


@pytest.mark.parametrize("max_points", [500, 2000])
def test_what_a_fit_measures_is_what_encode_does(max_points):
    x = _latents(2000)
    quantizer = _fit(x, max_points=max_points)
    codes = quantizer.encode(x)
    for k in range(quantizer.num_codebooks):
        counts = torch.bincount(codes[:, k], minlength=quantizer.codebook_size)
        # Frames as near to two entries, to within rounding, may be counted for the other.
        assert int((counts - quantizer.code_counts[k]).abs().sum()) <= 4
        error = (x - quantizer.decode(codes[:, : k + 1])).square().sum()
        level = (error / (x - x.mean(0)).square().sum()).sqrt()
        assert float(quantizer.noise_levels[k]) == pytest.approx(float(level), rel=1e-3)


def test_a_failed_fit_leaves_no_fitted_quantizer():
    class Broken(TensorSource):
        def batches(self, batch_size):
            self.passes = getattr(self, "passes", 0) + 1
            for batch in super().batches(batch_size):
                yield batch if self.passes == 1 else batch * torch.nan

    quantizer = _fit(_latents(100), max_points=500)
    with pytest.raises(ValueError, match="finite"):
        quantizer.fit(Broken(_latents(2000)), generator=_generator())
    with pytest.raises(RuntimeError, match="not fitted"):
        quantizer.encode(_latents(5))


def test_errors_name_the_fault(fitted):
    x = _latents(5)
    zeros = torch.zeros(5, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(5, 7\).*8"):
        fitted.encode(x[:, :7])
    with pytest.raises(REFUSED):
        fitted.encode(x[0])
    with pytest.raises(REFUSED):
        fitted.encode(x.long())
    for bad in (torch.nan, torch.inf, -1e30):
        with pytest.raises(ValueError, match="finite"):
            fitted.encode(torch.cat([x, torch.full((1, 8), bad)]))
    for n in (0, 5, -1):
        with pytest.raises(ValueError, match=rf"n_codebooks\D+{n}\b.*\b4\b"):
            fitted.encode(x, n)
    with pytest.raises(ValueError, match="beam_width is 0"):
        fitted.encode(x, beam_width=0)
    with pytest.raises(ValueError, match=r"\b16\b.*\b15\b"):
        fitted.decode(torch.where(torch.arange(4) == 2, 16, zeros))
    with pytest.raises(ValueError, match="-1"):
        fitted.decode(zeros - 1)
    with pytest.raises(ValueError, match=r"\(5, 5\).*1 to 4"):
        fitted.decode(torch.zeros(5, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(5, 0\)"):
        fitted.decode(zeros[:, :0])
    with pytest.raises(REFUSED):
        fitted.decode(zeros.float())


def test_fitting_errors_name_the_fault():
    def fit(x, mode="none", metric=None):
        quantizer = ResidualVectorQuantizer(8, 2, 4, standardization=mode)
        quantizer.fit(TensorSource(x), generator=_generator(), metric=metric)

    with pytest.raises(ValueError, match=r"\b7\b.*\b8\b"):
        fit(_latents(9, 7))
    with pytest.raises(ValueError, match="no latents"):
        fit(_latents(9)[:0])
    with pytest.raises(ValueError, match="finite"):
        fit(_latents(9) / 0)
    with pytest.raises(ValueError, match="metric"):
        fit(_latents(9), "decoder")
    with pytest.raises(ValueError, match="metric"):
        fit(_latents(9), "channel", _metric())
    with pytest.raises(ValueError, match="'colour'"):
        ResidualVectorQuantizer(8, 2, 4, standardization="colour")
    for name in ("dim", "num_codebooks", "codebook_size", "beam_width", "max_points", "iterations"):
        numbers = {"dim": 8, "num_codebooks": 2, "codebook_size": 4} | {name: 0}
        with pytest.raises(ValueError, match=f"{name} is 0"):
            ResidualVectorQuantizer(**numbers)
