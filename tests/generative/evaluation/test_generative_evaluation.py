"""Evaluation of generations: distances against references, and orders that must hold."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from models import HOP, RATE, REFUSED, make_tokenizer, tone

from generative.evaluation.classifier import class_agreement, train_classifier
from generative.evaluation.code_bits import language_model_bits, unigram_bits
from generative.evaluation.comparison import diversity, evaluate_generations
from generative.evaluation.embeddings import EmbeddingSpace, embed_rows, log_mel, statistics
from generative.evaluation.frechet import frechet_distance, gaussian_rows
from generative.evaluation.trained_run import evaluate_run
from generative.language_model.codec_lm import CodecLM, CodecLMConfig


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make_rows(tokenizer, column: str, count: int = 8, first: int = 0):
    """Clips of a second of two classes: low or high partials whose level wanders slowly."""
    rows, time = [], np.arange(RATE) / RATE
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        label = "high" if seed % 2 else "low"
        wave = 0.01 * rng.normal(size=RATE)
        for partial in (250, 700) if label == "low" else (1500, 2600):
            level = 1 + np.sin(2 * np.pi * (5 * time + rng.uniform()))
            wave += 0.1 * level * np.sin(2 * np.pi * (partial * time + rng.uniform()))
        encode = tokenizer.encode_codes if column == "codes" else tokenizer.encode_latents
        rows.append(encode(wave.astype(np.float32), sampling_rate=RATE) | {"label": label})
    return rows


def test_frechet_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    other = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 1
    s1, s2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    means = one.mean(0) - other.mean(0)
    expected = means @ means + np.trace(s1 + s2 - 2 * np.real(root))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    # One dimension: the squared differences of means and of deviations.
    x, y = one[:, :1], other[:, :1]
    by_hand = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(by_hand)
    with pytest.raises(REFUSED, match=r"1 .* 40"):
        frechet_distance(one[:1], other)


def test_diversity_counts_what_differs():
    points = np.zeros((6, 3))
    points[3:] = 100.0
    found = diversity(points)
    assert found["vendi"] == pytest.approx(2, rel=1e-6)
    # 18 of the 30 ordered pairs are of different places.
    assert found["mean_distance"] == pytest.approx(18 / 30 * 100 * math.sqrt(3))
    assert diversity(np.ones((5, 3)))["vendi"] == pytest.approx(1)
    assert diversity(1e3 * np.eye(7))["vendi"] == pytest.approx(7)


def test_statistics_are_mean_deviation_and_change():
    frames = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert statistics(frames).tolist() == pytest.approx([1, 1, 1, 0, 2, 0])
    assert statistics(frames[:1]).tolist() == pytest.approx([0, 1, 0, 0, 0, 0])


def test_log_mel_finds_a_tone_where_it_is():
    time = torch.arange(RATE) / RATE
    low, high = (log_mel(torch.sin(2 * torch.pi * f * time), RATE).mean(0) for f in (200, 3000))
    assert int(low.argmax()) < int(high.argmax())
    louder = log_mel(10 * torch.sin(2 * torch.pi * 200 * time), RATE).mean(0)
    assert float((louder - low)[low.argmax()]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("column", ["codes", "latents"])
def test_rows_are_embedded_segment_by_segment(tokenizer, column):
    rows = make_rows(tokenizer, column, 3)
    found = embed_rows(rows, tokenizer, 0.4)
    # 0.2 s are left over: half a segment, which is kept.
    assert found.clips.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.labels == ["low"] * 3 + ["high"] * 3 + ["low"] * 3
    frames = round(0.4 * RATE / HOP)
    latents = rows[1][column]
    if column == "codes":
        codes = torch.from_numpy(latents.astype(np.int64)).T[None]
        latents = tokenizer.dequantize(codes)[0].T.numpy()
    piece = torch.from_numpy(latents[frames : 2 * frames])
    piece = (piece - tokenizer.latents_mean) / tokenizer.latents_std
    assert found.points["latents"][4] == pytest.approx(statistics(piece).numpy(), rel=1e-4)
    # The level of a clip is no part of it.
    louder = embed_rows([row | {"gain": [9.0]} for row in rows], tokenizer, 0.4)
    assert np.array_equal(found.points["mel"], louder.points["mel"])
    with pytest.raises(REFUSED, match="rows"):
        embed_rows([], tokenizer)


def test_channels_are_clips_of_their_own(tokenizer):
    stereo = tokenizer.encode_codes(tone(1.0, channels=2, seed=3), sampling_rate=RATE)
    found = embed_rows([stereo], tokenizer, 1.0)
    assert len(found) == 2
    assert not np.array_equal(found.points["mel"][0], found.points["mel"][1])


def test_the_space_is_defined_by_real_points():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 6)) * [1, 2, 3, 4, 5, 0]
    space = EmbeddingSpace.fit(points)
    found = space(points)
    assert found.shape == (400, 6)
    assert found.mean(0) == pytest.approx(np.zeros(6), abs=1e-9)
    assert np.square(found).sum(1).mean() == pytest.approx(5)
    assert EmbeddingSpace.fit(points[:12]).axes.shape == (6, 3)


@pytest.mark.parametrize("column", ["codes", "latents"])
def test_the_baseline_has_the_moments_of_the_real_frames(tokenizer, column):
    rows = make_rows(tokenizer, column, 8)
    made = gaussian_rows(rows, tokenizer, torch.Generator().manual_seed(0))
    for row, fake in zip(rows, made, strict=True):
        assert fake[column].shape == row[column].shape
        assert tokenizer.decode_latents(fake).shape == (1, RATE) if column == "latents" else True
    if column == "latents":
        real, fake = (np.concatenate([r["latents"] for r in x]) for x in (rows, made))
        scale = np.sqrt(np.diag(np.cov(real, rowvar=False)))
        error = np.abs(np.cov(fake, rowvar=False) - np.cov(real, rowvar=False))
        assert float((error / np.outer(scale, scale)).max()) < 0.2
        assert float((np.abs(fake.mean(0) - real.mean(0)) / scale).max()) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("column", ["codes", "latents"])
def test_better_generations_get_better_figures(tokenizer, column):
    real = make_rows(tokenizer, column, 12)
    good = make_rows(tokenizer, column, 12, first=12)
    bad = gaussian_rows(real, tokenizer, torch.Generator().manual_seed(7))
    found = evaluate_generations(real, good, tokenizer, segment_seconds=0.25)
    for name in ("latents", "mel"):
        distances = found["frechet"][name]
        assert distances["gaussian_ratio"] > 3
        assert distances["generated"] == distances["gaussian"] / distances["gaussian_ratio"]
        # These generations are as real as the real clips.
        assert distances["generated_at_floor"] == pytest.approx(distances["floor"], rel=0.5)
        assert 0 < distances["floor"] < distances["gaussian"]
    assert found["classes"]["real_accuracy"] == 1
    assert found["classes"]["agreement"] == 1
    assert found["classes"]["confusion"]["low"] == {"high": 0, "low": 1}
    assert found["segments"]["real"] == 48
    worse = evaluate_generations(real, bad, tokenizer, segment_seconds=0.25)
    for name in ("latents", "mel"):
        assert worse["frechet"][name]["gaussian_ratio"] == pytest.approx(1, abs=0.3)
    one = evaluate_generations(
        real, [good[0]] * 4, tokenizer, generated_labels=["high"] * 4, segment_seconds=0.25
    )
    for name in ("latents", "mel"):
        spread = one["diversity"][name]
        assert spread["generated"]["vendi"] < spread["real"]["vendi"] / 2
    # It was asked for the other class.
    assert one["classes"]["agreement"] == 0
    assert one["classes"]["confusion"] == {"high": {"high": 0, "low": 1}}


def test_rows_that_do_not_go_together_are_refused(tokenizer):
    real = make_rows(tokenizer, "latents", 4)
    codes = make_rows(tokenizer, "codes", 4)
    with pytest.raises(REFUSED, match="codes"):
        evaluate_generations(real, codes, tokenizer)
    with pytest.raises(ValueError, match="seed=-1"):
        evaluate_run("nowhere", "nowhere", seed=-1)
    few = [row | {"codes": row["codes"][:, :2]} for row in codes]
    with pytest.raises(REFUSED, match=r"4 .* 2"):
        evaluate_generations(few, codes, tokenizer)
    with pytest.raises(REFUSED, match=r"4 .* 1 "):
        evaluate_generations(real, real[:1], tokenizer)
    # Fewer generated codebooks are compared with as few real ones.
    found = evaluate_generations(codes, few, tokenizer, segment_seconds=0.25)
    assert found["frechet"]["latents"]["generated"] == pytest.approx(0, abs=1e-6)


def test_without_classes_there_is_no_agreement(tokenizer):
    rows = [row | {"label": None} for row in make_rows(tokenizer, "codes", 4)]
    assert evaluate_generations(rows, rows, tokenizer, segment_seconds=0.25)["classes"] is None
    assert class_agreement(embed_rows(rows, tokenizer), embed_rows(rows, tokenizer), {}) is None


def test_the_classifier_is_at_its_optimum():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(90, 4))
    classes = (points[:, 0] + 0.3 * rng.normal(size=90) > 0.8).astype(np.int64)
    model = train_classifier(points, classes, 2)
    x, y = torch.from_numpy(points), torch.from_numpy(classes)
    sizes = torch.bincount(y).double()
    loss = torch.nn.functional.cross_entropy(model(x), y, weight=sizes.sum() / sizes / 2)
    loss = loss + 1e-2 * model.weight.square().sum()
    model.zero_grad()
    loss.backward()
    assert float(model.weight.grad.abs().max()) < 1e-4
    assert torch.equal(model.weight, train_classifier(points, classes, 2).weight)


# Bits


def code_rows(count: int, frames: int, seed: int = 0):
    """Codebook 0 repeats 0 1 2 3 from a random place; codebook 1 is skewed noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        first = (np.arange(frames) + rng.integers(4)) % 4
        second = rng.choice(4, frames, p=[0.7, 0.1, 0.1, 0.1])
        rows.append({"codes": np.stack([first, second], 1).astype(np.int16), "label": "a"})
    return rows


def test_static_tables_are_cross_entropies():
    rows = code_rows(40, 50)
    tables = unigram_bits(rows, (4, 4))
    assert all(np.exp2(-table).sum() == pytest.approx(1) for table in tables)
    assert tables[0] == pytest.approx(np.full(4, 2.0), abs=0.05)
    assert tables[1][0] == pytest.approx(-math.log2(0.7), abs=0.05)
    with pytest.raises(REFUSED, match="rows"):
        unigram_bits([], (4,))


def test_bits_of_an_untrained_model_that_knows_nothing_are_uniform():
    model = CodecLM(CodecLMConfig((4, 4), width=16, depth=1, heads=2, labels=["a"]))
    with torch.no_grad():
        model.backbone.lm_head.weight.zero_()
    # The last window of a row may be short.
    found = language_model_bits(
        model, code_rows(5, 50), code_rows(3, 21, seed=1), frame_rate=100.0, batch_size=2
    )
    # Codebook 0 may stop, which makes five choices.
    assert found["lm"]["per_codebook"] == pytest.approx([math.log2(5), 2], rel=1e-5)
    assert found["nominal"]["bits_per_second"] == pytest.approx(400)
    assert found["codes"] == 3 * 21 * 2
    assert model.training


def test_a_model_that_learned_beats_the_static_code():
    torch.manual_seed(0)
    config = CodecLMConfig((4, 4), width=16, depth=1, heads=2, labels=["a"], context_frames=24)
    model = CodecLM(config).train()
    rows, held_out = code_rows(32, 24), code_rows(6, 60, seed=1)
    codes = torch.from_numpy(np.stack([row["codes"] for row in rows])).long()
    batch = {
        "codes": codes,
        "mask": torch.ones(codes.shape[:2], dtype=torch.bool),
        "label": torch.zeros(len(rows), dtype=torch.int64),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(60):
        loss = model.training_loss(batch, torch.Generator().manual_seed(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = language_model_bits(model, rows, held_out, frame_rate=100)
    entropy = -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.1))
    assert found["lm"]["per_codebook"][0] < 0.4
    assert found["lm"]["per_codebook"][1] == pytest.approx(entropy, abs=0.3)
    assert found["static"]["per_codebook"] == pytest.approx([2, entropy], abs=0.15)
    assert found["saving"] > 0.4
    assert found["static"]["bits_per_second"] == pytest.approx(
        100 * sum(found["static"]["per_codebook"])
    )
    # Two channels are two clips.
    stereo = [
        {"codes": np.concatenate([a["codes"], b["codes"]]), "num_channels": 2, "label": "a"}
        for a, b in zip(held_out[::2], held_out[1::2], strict=True)
    ]
    again = language_model_bits(model, rows, stereo, frame_rate=100)
    assert again["lm"]["bits_per_code"] == pytest.approx(found["lm"]["bits_per_code"], rel=1e-4)
