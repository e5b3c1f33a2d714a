import faiss
import pytest
import torch

from tokenizer.quantizers import FaissResidualQuantizer, LocalSearchQuantizer, TensorSource
from tokenizer.quantizers.additive import _LocalSearch
from tokenizer.quantizers.faiss_bridge import draw_seed
from tokenizer.quantizers.sources import sample_frames

DIM, K, SIZE, BITS = 10, 4, 16, 4


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _latents(rows=1500, seed=0):
    g = _generator(seed)
    mixing = torch.randn(DIM, DIM, generator=_generator(9)) * torch.logspace(0, -0.7, DIM)
    return torch.randn(rows, DIM, generator=g) @ mixing + 2


def _mse(x, estimate):
    return float((x - torch.as_tensor(estimate)).square().sum(1).mean())


def _seed(x):
    g = _generator()
    sample_frames(TensorSource(x), len(x), g)
    return draw_seed(g)


@pytest.fixture(scope="module")
def trained():
    """Ours, and faiss's own trained in the same way."""
    x = _latents()
    ours = LocalSearchQuantizer(DIM, K, SIZE, iterations=5)
    ours.fit(TensorSource(x), generator=_generator())
    reference = faiss.LocalSearchQuantizer(DIM, K, BITS)
    reference.train_iters = 5
    reference.random_seed = _seed(x)
    reference.train((x - x.mean(0)).numpy())
    return ours, reference, x.mean(0)


def test_local_search_decodes_as_faiss(trained):
    ours, reference, mean = trained
    test = _latents(500, seed=1) - mean
    packed = reference.compute_codes(test.numpy())
    codes = torch.from_numpy(faiss.unpack_bitstrings(packed, K, BITS).astype("int64"))
    z = torch.from_numpy(reference.decode(packed)) + mean
    torch.testing.assert_close(ours.decode(codes), z, rtol=1e-4, atol=1e-4)


def test_local_search_finds_codes_as_good_as_faiss(trained):
    ours, reference, mean = trained
    test = _latents(500, seed=1)
    theirs = _mse(test - mean, reference.decode(reference.compute_codes((test - mean).numpy())))
    assert _mse(test, ours.decode(ours.encode(test))) < 1.02 * theirs


def test_local_search_is_near_the_best_of_all_codes():
    g = _generator(3)
    books = list(torch.randn(3, 6, 4, generator=g))
    x = 2 * torch.randn(64, 4, generator=g)
    every = torch.cartesian_prod(*[torch.arange(6)] * 3)
    sums = sum(book[code] for book, code in zip(books, every.T, strict=True))
    best = torch.cdist(x, sums).square().amin(1)

    def error(rounds):
        codes = _LocalSearch(books, 64, 4)(x, rounds)
        z = sum(book[code] for book, code in zip(books, codes.T, strict=True))
        return (x - z).square().sum(1)

    errors = [error(rounds) for rounds in (0, 4, 64)]
    for worse, better in ((errors[0], errors[1]), (errors[1], errors[2])):
        assert bool((better <= worse + 1e-5).all())
    assert errors[2].mean() < 1.01 * best.mean()
    assert errors[0].mean() > 1.05 * best.mean()


@pytest.mark.parametrize("width", [1, 4])
def test_residual_quantizer_equals_faiss(width):
    x, test = _latents(), _latents(500, seed=1)
    mean = x.mean(0)
    ours = FaissResidualQuantizer(DIM, K, SIZE, beam_width=width)
    ours.fit(TensorSource(x), generator=_generator())
    reference = faiss.ResidualQuantizer(DIM, K, BITS)
    reference.max_beam_size = width
    reference.cp.niter = 10
    reference.cp.seed = _seed(x)
    reference.cp.min_points_per_centroid = 1
    reference.train((x - mean).numpy())
    packed = reference.compute_codes((test - mean).numpy())
    expected = torch.from_numpy(faiss.unpack_bitstrings(packed, K, BITS).astype("int64"))
    codes = ours.encode(test)
    assert (codes == expected).all(1).float().mean() > 0.99
    z = torch.from_numpy(reference.decode(packed)) + mean
    torch.testing.assert_close(ours.decode(expected), z, rtol=1e-4, atol=1e-4)
    assert _mse(test, ours.decode(codes)) == pytest.approx(_mse(test, z), rel=1e-3)


def test_a_beam_beats_greedy_on_unseen_latents():
    x, test = _latents(), _latents(500, seed=1)
    quantizer = FaissResidualQuantizer(DIM, K, SIZE)
    quantizer.fit(TensorSource(x), generator=_generator())
    errors = [_mse(test, quantizer.decode(quantizer.encode(test, beam_width=w))) for w in (1, 4)]
    assert errors[1] < 0.97 * errors[0]


def test_residual_quantizer_takes_no_metric():
    quantizer = FaissResidualQuantizer(DIM, K, SIZE)
    with pytest.raises(ValueError, match="metric"):
        quantizer.fit(TensorSource(_latents()), generator=_generator(), metric=torch.eye(DIM))
