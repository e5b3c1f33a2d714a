import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tokenizer.quantizers import (
    ImplicitNeuralQuantizer,
    ResidualVectorQuantizer,
    TensorSource,
    neural_training as training,
)

DIM, K, SIZE = 6, 3, 8
SMALL = {"hidden": 32, "depth": 1, "candidates": 4, "batch_size": 128, "learning_rate": 1e-2}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _lines(rows, seed=0):
    """Points along lines, one for each of some clusters: what is left tells the cluster, and the
    cluster in which direction more is left."""
    fixed = _generator(77)
    centres = 4 * torch.randn(8, DIM, generator=fixed)
    directions = torch.nn.functional.normalize(torch.randn(8, DIM, generator=fixed), dim=1)
    g = _generator(seed)
    cluster = torch.randint(8, (rows,), generator=g)
    along = torch.randn(rows, 1, generator=g)
    noise = 0.02 * torch.randn(rows, DIM, generator=g)
    return centres[cluster] + along * directions[cluster] + noise + 5


def _fit(x, *, seed=0, checkpoint=None, **options):
    quantizer = ImplicitNeuralQuantizer(x.shape[1], K, SIZE, **{**SMALL, **options})
    return quantizer.fit(TensorSource(x), generator=_generator(seed), checkpoint=checkpoint)


def _mse(quantizer, x, n=None, **options):
    return float((x - quantizer.decode(quantizer.encode(x, n, **options))).square().sum(1).mean())


@pytest.fixture(scope="module")
def fitted():
    return _fit(_lines(4000), steps=200)


def test_it_beats_plain_residual_quantization_on_unseen_latents(fitted):
    plain = ResidualVectorQuantizer(DIM, K, SIZE)
    plain.fit(TensorSource(_lines(4000)), generator=_generator())
    test = _lines(2000, seed=1)
    assert _mse(fitted, test) < 0.5 * _mse(plain, test)
    assert _mse(fitted, test, beam_width=4) < 0.5 * _mse(plain, test, beam_width=4)


def test_no_rate_pays_for_another(fitted):
    # What training starts from, as `plain` is another k-means, with other luck.
    start = _fit(_lines(4000), steps=1, learning_rate=1e-9)
    test = _lines(2000, seed=1)
    for n in range(1, K + 1):
        assert _mse(fitted, test, n) < _mse(start, test, n)


def test_beams_and_candidates_pay_on_unseen_latents(fitted):
    test = _lines(1000, seed=1)
    greedy = _mse(fitted, test)
    assert _mse(fitted, test, beam_width=4) < 0.999 * greedy
    fewer = ImplicitNeuralQuantizer(**{**fitted.to_config(), "candidates": 1})
    fewer.load_state_dict(fitted.state_dict())
    more = ImplicitNeuralQuantizer(**{**fitted.to_config(), "candidates": SIZE})
    more.load_state_dict(fitted.state_dict())
    assert greedy < 0.99 * _mse(fewer, test)
    # The best of more is better, for one codebook at least: a later one may pay for it.
    assert _mse(more, test, 1) <= _mse(fitted, test, 1) <= _mse(fewer, test, 1)


def test_with_all_candidates_the_search_is_a_loop_over_all_entries(fitted):
    quantizer = ImplicitNeuralQuantizer(**{**fitted.to_config(), "candidates": SIZE})
    quantizer.load_state_dict(fitted.state_dict())
    x = _lines(50, seed=1)
    codes = quantizer.encode(x)
    found = torch.zeros(50, 0, dtype=torch.int64)
    for _ in range(K):
        every = torch.stack([torch.cat([found, torch.full((50, 1), s)], 1) for s in range(SIZE)])
        errors = torch.stack([(x - quantizer.decode(c)).square().sum(1) for c in every])
        best = errors.argmin(0)
        found = torch.cat([found, best[:, None]], 1)
    assert (codes == found).all(1).float().mean() >= 0.98


def test_training_starts_from_plain_residual_quantization():
    x = _lines(1000)
    x = x - x.mean(0)
    plan = training.Plan(SIZE, K, 16, 1, 4, steps=0, batch_size=64, learning_rate=1e-3)
    weights = training.train(x, plan, _generator(), None)
    seed = int(torch.randint(2**31, (), generator=_generator()))
    plain = ResidualVectorQuantizer(DIM, K, SIZE, refinements=4)
    plain.fit(TensorSource(x), generator=_generator(seed))
    assert torch.equal(weights["codebooks"], plain.codebooks)
    # The network adds nothing to an entry yet.
    w = {name: value[1] for name, value in weights.items()}
    entry = torch.randn(5, DIM, generator=_generator())
    assert torch.equal(training.network(w, entry, x[:5]), entry)


def test_entries_tried_together_are_those_of_the_network(fitted):
    w = {name: getattr(fitted, name)[1] for name in training.NETWORK}
    codes = torch.randint(SIZE, (6, 3), generator=_generator())
    estimate = torch.randn(6, DIM, generator=_generator())
    tried = training.Stage(w).try_entries(codes, estimate)
    for a in range(3):
        expected = training.network(w, w["codebooks"][codes[:, a]], estimate)
        torch.testing.assert_close(tried[:, a], expected, rtol=1e-5, atol=1e-5)


class Killed(Exception):
    pass


@pytest.fixture
def before_steps():
    """A list of functions, each of which is called with the optimizer before each of its steps."""
    hooks = []

    def call(optimizer, *_):
        for hook in hooks:
            hook(optimizer)

    handle = register_optimizer_step_pre_hook(call)
    yield hooks
    handle.remove()


@pytest.mark.parametrize("stop", [1, 7])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    stop, tmp_path, monkeypatch, before_steps
):
    x = _lines(500)
    whole = _fit(x, steps=12)
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", -1.0)
    steps = []

    def die(_):
        if len(steps) == stop:
            raise Killed

    path = tmp_path / "run" / "quantizer.safetensors"
    before_steps += [die, steps.append]
    with pytest.raises(Killed):
        _fit(x, steps=12, checkpoint=path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    before_steps.remove(die)
    resumed = _fit(x, steps=12, checkpoint=path)
    assert len(steps) == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # A finished one takes no more steps.
    again = _fit(x, steps=12, checkpoint=path)
    assert len(steps) == 12
    assert torch.equal(again.codebooks, whole.codebooks)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "quantizer.safetensors"
    x = _lines(300)
    _fit(x, steps=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"'hidden': 32.*'hidden': 8"):
        _fit(x, steps=2, hidden=8, checkpoint=path)
    with pytest.raises(ValueError, match=r"latents"):
        _fit(_lines(300, seed=2), steps=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"seed"):
        _fit(x, steps=2, seed=1, checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no checkpoint of a quantizer"):
        _fit(x, steps=2, checkpoint=path)


def test_learning_rates_warm_up_and_fall(before_steps):
    rates = []
    before_steps.append(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"]))
    _fit(_lines(200), steps=100, learning_rate=0.02)
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.02)
    assert 5 < top < 15
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.02 * 0.02


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="hidden is 0"):
        ImplicitNeuralQuantizer(DIM, K, SIZE, hidden=0)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        ImplicitNeuralQuantizer(DIM, K, SIZE, learning_rate=0.0)
