import pytest
import torch

from tokenizer.quantizers.refine import joint_least_squares, refine
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource

ROWS, DIM, K, SIZE = 300, 5, 3, 8


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _problem(seed=0):
    g = _generator(seed)
    x = torch.randn(ROWS, DIM, generator=g)
    codes = torch.randint(SIZE - 1, (ROWS, K), generator=g)
    return x, codes, torch.randn(K, SIZE, DIM, generator=g)


def _weighted_errors(x, codes, books, weights):
    estimate = torch.zeros_like(x)
    total = 0.0
    for book, code, weight in zip(books, codes.T, weights, strict=True):
        estimate = estimate + book[code]
        total += float(weight * (x - estimate).square().sum())
    return total


@pytest.mark.parametrize("weights", [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.1]])
def test_joint_codebooks_are_the_least_squares_solution(weights):
    x, codes, books = _problem()
    weights = torch.tensor(weights)
    found = joint_least_squares(x, codes, books, weights, iterations=200)
    # The same problem with a dense matrix: one row for each vector and prefix.
    onehot = torch.nn.functional.one_hot(codes, SIZE).double()
    rows = torch.zeros(ROWS, K, K, SIZE, dtype=torch.float64)
    for n in range(K):
        rows[:, n, : n + 1] = onehot[:, : n + 1] * weights[n].sqrt()
    target = x[:, None].double() * weights.sqrt()[:, None]
    solution = torch.linalg.lstsq(
        rows.reshape(ROWS * K, K * SIZE), target.reshape(ROWS * K, DIM), driver="gelsd"
    ).solution.view(K, SIZE, DIM)
    best = _weighted_errors(x, codes, solution.float(), weights)
    assert _weighted_errors(x, codes, found, weights) == pytest.approx(best, rel=1e-5)
    assert best < 0.99 * _weighted_errors(x, codes, books, weights)
    # Nothing has the last code: those entries stay.
    assert torch.equal(found[:, -1], books[:, -1])


def _latents(rows, seed=0):
    g = _generator(seed)
    mixing = torch.randn(12, 12, generator=_generator(9)) * torch.logspace(0, -0.7, 12)
    x = torch.randn(rows, 12, generator=g)
    return (x * x.abs().sqrt()) @ mixing + 3


def test_refining_never_raises_the_error_of_given_codes():
    x, codes, _ = _problem()
    books = 0.1 * torch.randn(K, SIZE, DIM, generator=_generator(1))
    better = refine(x, codes, books)
    for n in (1, K):
        weights = [0.0] * (n - 1) + [1.0]
        errors = [_weighted_errors(x, codes[:, :n], b[:n], weights) for b in (books, better)]
        assert errors[1] < errors[0]


@pytest.mark.parametrize("mode", ["none", "decoder"])
def test_refinements_lower_held_out_error_at_all_rates(mode):
    metric = torch.diag(torch.logspace(0, 1, 12)) if mode == "decoder" else None
    scale = torch.ones(12) if metric is None else metric.diagonal().sqrt()
    train, test = _latents(6000), _latents(2000, seed=1)
    errors = []
    for refinements in (0, 4):
        quantizer = ResidualVectorQuantizer(12, 6, 16, mode, refinements=refinements)
        quantizer.fit(TensorSource(train), generator=_generator(), metric=metric)
        errors.append(
            [
                float(
                    ((test - quantizer.decode(quantizer.encode(test, n))) * scale).square().mean()
                )
                for n in range(1, 7)
            ]
        )
    plain, refined = errors
    assert all(b < 1.005 * a for a, b in zip(plain, refined, strict=True))
    assert refined[-1] < 0.99 * plain[-1]


def test_refinements_that_cannot_be_are_refused():
    for mode in ("channel", "whiten"):
        with pytest.raises(ValueError, match=mode):
            ResidualVectorQuantizer(4, 2, 4, mode, refinements=1)
    with pytest.raises(ValueError, match="refinements is -1"):
        ResidualVectorQuantizer(4, 2, 4, refinements=-1)
