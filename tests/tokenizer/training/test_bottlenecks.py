import sys
from dataclasses import replace

import pytest
import torch
import vector_quantize_pytorch as library

from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.sources import TensorSource
from tokenizer.training import bottlenecks
from tokenizer.training.bottlenecks import (
    BOTTLENECKS,
    Bottleneck,
    BottleneckConfig,
    make_bottleneck,
    make_quantizer,
)

DIM, COUNT, SIZE, BATCH, FRAMES = 8, 4, 16, 3, 50
CONFIG = BottleneckConfig(codebooks=COUNT, codebook_size=SIZE, codebook_dim=3, min_codebooks=1)


def latents(seed: int = 0, batch: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, DIM, FRAMES, generator=generator)
    return z * torch.logspace(0.3, -0.7, DIM)[:, None]


def make(kind: str, config: BottleneckConfig = CONFIG) -> tuple[Bottleneck, Quantizer]:
    torch.manual_seed(0)
    quantizer = make_quantizer(kind, DIM, config)
    frames = latents(seed=100, batch=20).transpose(1, 2).reshape(-1, DIM)
    quantizer.fit(TensorSource(frames), generator=torch.Generator().manual_seed(0))
    return make_bottleneck(quantizer, config, frames=BATCH * FRAMES), quantizer


def trained(kind: str, steps: int = 5) -> tuple[Bottleneck, Quantizer]:
    """After some steps of gradient descent and of running means, on other latents."""
    bottleneck, quantizer = make(kind)
    bottleneck.train()
    learnt = list(bottleneck.parameters())
    for step in range(steps):
        z = 1.5 * latents(step)
        out = bottleneck(z, torch.tensor([COUNT, 2, 3]), step)
        if learnt:
            loss = (out.latents - z).square().mean() + 0.1 * out.commitment
            gradients = torch.autograd.grad(loss, learnt)
            with torch.no_grad():
                for parameter, gradient in zip(learnt, gradients, strict=True):
                    parameter.add_(gradient, alpha=-0.05)
    return bottleneck.eval(), quantizer


def full(batch: int = BATCH, n: int = COUNT) -> torch.Tensor:
    return torch.full((batch,), n)


def reference(bottleneck: Bottleneck, kind: str, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes ``[M, K]`` and latents by the library's own modules with the same weights."""
    x = z.transpose(1, 2)
    if kind == "rvq":
        theirs = library.ResidualVQ(dim=DIM, num_quantizers=COUNT, codebook_size=SIZE).eval()
        for ours, layer in zip(bottleneck.stages, theirs.layers, strict=True):
            layer.load_state_dict(ours.vq.state_dict())
        total, codes, _ = theirs(x)
    else:
        residual, total, codes = x, torch.zeros_like(x), []
        for stage in bottleneck.stages:
            if kind == "factorized":
                theirs = library.VectorQuantize(
                    dim=DIM, codebook_dim=3, codebook_size=SIZE, use_cosine_sim=True
                )
                theirs._codebook.load_state_dict(stage.vq._codebook.state_dict())
            else:
                theirs = library.FSQ([4, 4], dim=DIM, preserve_symmetry=True)
            theirs.project_in.load_state_dict(stage.into.state_dict())
            theirs.project_out.load_state_dict(stage.out.state_dict())
            quantized, index, *_ = theirs.eval()(residual)
            residual, total = residual - quantized, total + quantized
            codes.append(index.long())
        codes = torch.stack(codes, -1)
    return codes.reshape(-1, COUNT), total.reshape(-1, DIM)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_what_was_learnt_becomes_an_ordinary_quantizer(kind):
    bottleneck, quantizer = trained(kind)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    bottleneck.write_to(quantizer)
    assert any(not torch.equal(value, before[n]) for n, value in quantizer.state_dict().items())
    z = latents(seed=7)
    frames = z.transpose(1, 2).reshape(-1, DIM)
    with torch.no_grad():
        codes, total = reference(bottleneck, kind, z)
        assert torch.equal(quantizer.encode(frames), codes)
        torch.testing.assert_close(quantizer.decode(codes), total, atol=1e-5, rtol=1e-5)
        # And so does every prefix.
        for n in range(1, COUNT + 1):
            out = bottleneck(z, full(n=n))
            assert torch.equal(out.codes.transpose(1, 2).reshape(-1, n), codes[:, :n])
            ours = quantizer.decode(quantizer.encode(frames, n))
            theirs = out.latents.transpose(1, 2).reshape(-1, DIM)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_each_item_uses_its_own_number_of_codebooks(kind):
    bottleneck, _ = make(kind)
    bottleneck.eval().requires_grad_(False)
    z, counts = latents(), torch.tensor([COUNT, 1, 2])
    out = bottleneck(z, counts)
    for i, n in enumerate(counts.tolist()):
        alone = bottleneck(z[i : i + 1], full(1, n))
        torch.testing.assert_close(out.latents[i], alone.latents[0])
        assert torch.equal(out.codes[i, :n], alone.codes[0])
        assert (out.codes[i, n:] == -1).all()
        assert float(out.noise_level[i]) == float(bottleneck.noise_levels[n - 1])
    errors = [float((bottleneck(z, full(n=n)).latents - z).square().mean()) for n in (1, 2, COUNT)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_gradients_pass_straight_through(kind):
    bottleneck, _ = make(kind)
    z = latents().requires_grad_()
    out = bottleneck.train()(z, full(), 0)
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((out.latents * weights).sum(), z, retain_graph=True)
    if kind == "rvq":
        assert torch.equal(gradient, weights)
    else:
        # Through what the stages look at only, but towards the same end.
        assert float((gradient * weights).sum()) > 0
    if kind != "rfsq":
        (pull,) = torch.autograd.grad(out.commitment, z)
        with torch.no_grad():
            bottleneck.eval()
            here, nearer = bottleneck(z, full()), bottleneck(z - 20 * pull, full())
        assert 0 < float(nearer.commitment) < float(here.commitment)
    else:
        assert float(out.commitment) == 0


def test_every_stage_of_the_rvq_pulls_the_encoder():
    bottleneck, _ = make("rvq")
    z = latents().requires_grad_()
    (one,) = torch.autograd.grad(bottleneck(z, full(n=1)).commitment, z)
    (two,) = torch.autograd.grad(bottleneck(z, full(n=2)).commitment, z)
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("kind", ["rvq", "factorized"])
def test_entries_follow_the_latents_and_only_in_training(kind):
    bottleneck, _ = make(kind, replace(CONFIG, codebook_decay=0.8))
    start = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    bottleneck.eval()(3 * latents(), full())
    for name, value in bottleneck.state_dict().items():
        assert torch.equal(value, start[name]), name
    # Latents of another shape: their residuals shrink as the entries follow them.
    z = latents(batch=20).flip(1)
    errors = []
    for step in range(25):
        out = bottleneck.train()(z, full(20), step)
        errors.append(float(out.commitment.detach()))
    assert errors[-1] < 0.8 * errors[0]
    assert torch.isfinite(bottleneck.noise_levels).all()


@pytest.mark.parametrize("kind", ["rvq", "factorized"])
def test_dead_entries_are_revived_where_the_seed_says(kind):
    def run(seed: int, dead_share: float = 0.1) -> torch.Tensor:
        config = BottleneckConfig(
            codebooks=1, codebook_size=SIZE, codebook_dim=3, min_codebooks=1, dead_share=dead_share
        )
        bottleneck, _ = make(kind, config)
        codebook = bottleneck.stages[0].vq._codebook
        codebook.embed[0, 0] = 100.0 if kind == "rvq" else 0.0
        codebook.embed_avg[0, 0] = codebook.embed[0, 0] * 1e-3
        codebook.cluster_size[0, 0] = 1e-3
        bottleneck.train()(latents(), full(n=1), seed)
        return codebook.embed[0].clone()

    revived = run(3)
    torch.manual_seed(12345)
    assert torch.equal(revived, run(3))
    assert not torch.equal(revived[0], run(4)[0])
    assert revived[0].norm() < 20
    if kind == "rvq":
        seen = latents().transpose(1, 2).reshape(-1, DIM)
        assert (seen - revived[0]).norm(dim=1).min() < 1e-5
        assert run(3, dead_share=0.0)[0].norm() > 20


def test_the_global_generator_is_left_alone():
    bottleneck, _ = make("rvq")
    state = torch.random.get_rng_state()
    bottleneck.train()(latents(), full(), 7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_entry_just_revived_is_given_time():
    bottleneck, _ = make("rvq")
    codebook = bottleneck.stages[0].vq._codebook
    fair = BATCH * FRAMES * CONFIG.shares()[0] / SIZE
    assert codebook.reset_cluster_size == pytest.approx(fair)
    assert codebook.threshold_ema_dead_code == pytest.approx(0.1 * fair)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_the_noise_level_is_the_running_error(kind, monkeypatch):
    monkeypatch.setattr(bottlenecks, "_DECAY", 0.8)
    bottleneck, quantizer = make(kind)
    start = quantizer.noise_levels.clone()
    torch.testing.assert_close(bottleneck.noise_levels, start)
    z = 0.4 * latents(batch=20)
    for step in range(40):
        with torch.no_grad():
            # Most items drop some codebooks; what the others leave is no less known for that.
            bottleneck.train()(z, torch.arange(20) % COUNT + 1, step)
    bottleneck.write_to(quantizer)
    quantizer.measure(TensorSource(z.transpose(1, 2).reshape(-1, DIM)))
    assert (quantizer.noise_levels - start).abs().max() > 0.05
    torch.testing.assert_close(bottleneck.noise_levels, quantizer.noise_levels, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_autocast_changes_nothing(kind):
    bottleneck, _ = make(kind)
    wanted = bottleneck.eval()(latents(), full())
    with torch.autocast("cpu", torch.bfloat16):
        got = bottleneck(latents(), full())
    assert got.latents.dtype == torch.float32
    assert torch.equal(got.latents, wanted.latents)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_frames_that_are_not_finite_spoil_nothing(kind):
    bottleneck, _ = make(kind)
    z = latents()
    z[1, :, 3] = torch.nan
    out = bottleneck.train()(z, full(), 0)
    assert out.latents[1, :, 3].isnan().all()
    assert out.latents.isnan().sum() == DIM
    for name, value in bottleneck.state_dict().items():
        assert value.isfinite().all(), name


def test_perplexity_says_how_many_entries_are_in_use():
    bottleneck, _ = make("rvq")
    for step in range(30):
        bottleneck.train()(latents(step), full(), step)
    lively = bottleneck.perplexity()
    assert lively.shape == (COUNT,)
    assert (lively > 8).all()
    assert (lively <= SIZE).all()
    bottleneck.usage.zero_()
    bottleneck.usage[:, 3] = 5.0
    torch.testing.assert_close(bottleneck.perplexity(), torch.ones(COUNT))


def test_counts_are_drawn_as_announced():
    config = BottleneckConfig(codebooks=24, min_codebooks=3, codebook_dropout=0.5)
    draw = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    counts = config.counts(draw)
    assert counts[0] == 24
    assert int(counts.min()) == 3
    assert 0.45 < float((counts == 24).float().mean()) < 0.55
    few = counts[counts < 24].double().log()
    middle = (torch.tensor(3.0).log() + torch.tensor(24.0).log()) / 2
    assert abs(float(few.mean() - middle)) < 0.05
    shares = config.shares()
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == shares[2] == 1
    assert shares[23] == pytest.approx(0.5, abs=0.02)
    always = BottleneckConfig(codebook_dropout=0.0)
    assert (always.counts(draw) == 24).all()
    partly = replace(config, exact_share=0.2).counts(draw)
    assert 0.17 < float((partly == 0).float().mean()) < 0.23
    assert torch.equal(partly[partly > 0], counts[partly > 0])
    assert partly[0] == 24


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_exact_latents_pass_as_they_are_and_teach_codebooks_nothing(kind):
    z = latents().requires_grad_()
    seen = []
    for exact in (latents(), latents(9)):
        bottleneck, _ = make(kind)
        # The middle item is exact: whatever it is, the others and the codebooks are the same.
        joint = torch.stack([z[0], exact[1], z[2]])
        out = bottleneck.train()(joint, torch.tensor([COUNT, 0, 2]))
        assert torch.equal(out.latents[1], exact[1])
        assert out.noise_level[1] == 0
        assert (out.codes[1] == -1).all()
        seen.append([*bottleneck.stages.state_dict().values(), out.latents[::2], out.commitment])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)
    bottleneck.eval()
    alone = bottleneck(z, torch.zeros(BATCH, dtype=torch.int64))
    assert torch.equal(alone.latents, z)
    assert alone.codes.shape == (BATCH, 0, FRAMES)
    (gradient,) = torch.autograd.grad(alone.latents.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_codebooks_that_stay_code_like_those_that_learn():
    learning, quantizer = make("rvq")
    fixed = make_bottleneck(quantizer, replace(CONFIG, codebook_decay=1.0), frames=BATCH * FRAMES)
    entries = quantizer.codebooks.clone()
    z, counts = latents(3), torch.tensor([COUNT, 2, 0])
    wanted = learning.eval()(z, counts)
    for _ in range(3):
        got = fixed.train()(z, counts)
    assert torch.equal(got.codes, wanted.codes)
    torch.testing.assert_close(got.latents, wanted.latents)
    torch.testing.assert_close(got.commitment, wanted.commitment)
    # They are part of the checkpoint, and come out as they went in.
    other = make_quantizer("rvq", DIM, CONFIG)
    resumed = make_bottleneck(other, replace(CONFIG, codebook_decay=1.0), frames=BATCH * FRAMES)
    resumed.load_state_dict(fixed.state_dict())
    resumed.write_to(other)
    assert torch.equal(other.codebooks, entries)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="min_codebooks"):
        BottleneckConfig(codebooks=2, min_codebooks=3)
    with pytest.raises(ValueError, match=r"codebook_dropout.* 1\.5"):
        BottleneckConfig(codebook_dropout=1.5)
    with pytest.raises(ValueError, match="dead_share"):
        BottleneckConfig(dead_share=2.0)
    with pytest.raises(ValueError, match=r"0\.4\b.*codebook_dropout"):
        BottleneckConfig(codebook_dropout=0.6, exact_share=0.5)
    with pytest.raises(ValueError, match="factorized"):
        make("factorized", replace(CONFIG, codebook_decay=1.0))
    with pytest.raises(ValueError, match="rvq, factorized, rfsq"):
        make_quantizer("vq", DIM, CONFIG)
    with pytest.raises(ValueError, match="power of two"):
        make_quantizer("rfsq", DIM, BottleneckConfig(codebook_size=1000))
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    for kind in BOTTLENECKS:
        with pytest.raises(ImportError, match=r"latent-tokenizer\[e2e\]"):
            make_bottleneck(make_quantizer(kind, DIM, CONFIG), CONFIG, frames=100)
