"""The benchmarks run, on models and numbers that are tiny, and say what they measure."""

import json
from argparse import Namespace

import pytest
import torch

from tokenizer import load_tokenizer
from tokenizer.benchmarks import command, growth, machine, peers, scaling, speed, vectors


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_multiply_adds_and_rates():
    a, b = torch.randn(30, 20), torch.randn(20, 10)
    assert machine.multiply_adds(lambda: a @ b) == 30 * 20 * 10
    assert machine.matmul_rate(repetitions=1) > 1e6
    order = []
    times = machine.best_of([lambda: order.append(0), lambda: order.append(1)], 2)
    assert order == [0, 1] * 3
    assert all(0 <= t < 1 for t in times)


def test_a_codec_is_measured(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    # Of 4 codebooks of 16 entries, 100 frames a second: 0.4 kbit/s each.
    line = speed.measure("ours 0.8", 0.5, "cpu", 1, str(tmp_path / "model"))
    assert line["kbps"] == 0.8
    assert line["encode"] > 0
    assert line["decode"] > 0
    assert line["first_ms"] > line["waits_ms"] == pytest.approx(1000 * tokenizer.latency)
    assert line["encode_over_floor"] > 0
    latents = speed.measure("ours latents", 0.5, "cpu", 1, str(tmp_path / "model"))
    assert latents["kbps"] is None
    both = speed.table([line | {"codec": "dac"}, latents])
    assert "encode / DAC" in both
    json.dumps(line)


def test_quantizers_take_turns():
    lines = vectors.encode_lines(1, 2, 16, 8, "cpu", 64)
    assert [line["quantizer"] for line in lines][:2] == ["ours, greedy", "ours, beam 4"]
    assert len(lines) >= 4
    assert all(line["vectors_per_second"] > 0 for line in lines)
    assert "vectors per second" in command.table(lines)


def test_fitting_is_measured_on_other_vectors():
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(1500, 8, generator=g), torch.randn(200, 8, generator=g)
    lines = vectors.fit_lines(train, test, 2, 16, peers=True)
    assert [line["fit"] for line in lines] == ["ours", "faiss.ResidualQuantizer"]
    assert all(-10 < line["distortion_db"] < 0 for line in lines)
    lines = vectors.kmeans_lines(train, 16)
    assert len(lines) == 4
    assert lines[0]["distortion"] < 1.05 * min(line["distortion"] for line in lines[1:])


def test_growth_is_drawn(tmp_path):
    points = [{"value": v, "seconds": v / 3, "peak_mib": 10 + v} for v in (1.0, 2.0, 4.0)]
    for kind in growth.POINTS:
        growth.plot(kind, points, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").stat().st_size > 1000
    assert set(peers.PEERS) == {"dac", "encodec", "mimi", "oobleck"}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    options = Namespace(steps=2, crops=2, preset="tiny", mixed_precision="no", device="cpu")
    scaling.make_clips(tmp_path / "clips")
    one, two = (scaling.measure(tmp_path / "clips", tmp_path / str(n), n, options) for n in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    weights = [load_tokenizer(tmp_path / str(n) / "model").state_dict() for n in (1, 2)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=2e-4)
