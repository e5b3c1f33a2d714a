"""The benchmark beside other codecs, on a folder of a few seconds of noise."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import soundfile

from tokenizer.benchmarks import anchors
from tokenizer.benchmarks.anchors import align, compare, read_manifest, summarize
from tokenizer.evaluation.perceptual import PerceptualMetrics

RATE = 16_000
LENGTH = int(1.5 * RATE)
FIELDS = ("path", "page", "clip", "domain", "role", "codec", "kbps", "frame_rate", "gain_applied")


def noise(seed: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips; a codec that is late and a little noisy, one of variable rate, one without phase.

    The good codec's file is at half the amplitude, as its line says.
    """
    root = tmp_path_factory.mktemp("anchors")
    lines = []

    def add(name, wave, clip, codec="", kbps="", gain=1.0, domain="speech"):
        soundfile.write(root / f"{name}.wav", wave, RATE, subtype="PCM_16")
        role = "reconstruction" if codec else "original"
        values = (f"{name}.wav", "page", clip, domain, role, codec, kbps, "", gain)
        lines.append(dict(zip(FIELDS, values, strict=True)))

    for seed, (clip, domain) in enumerate((("one", "speech"), ("two", "music"))):
        x = noise(seed)
        add(clip, x, clip, domain=domain)
        late = np.concatenate([np.zeros(37, np.float32), x + 0.1 * noise(9)])
        add(f"{clip}-late", 0.5 * late, clip, "Late", 0.9, 0.5, domain)
        add(f"{clip}-other", noise(20 + seed), clip, "Other", 100.0, domain=domain)
        for rate in (0.8, 1.1):
            add(f"{clip}-v{rate}", x, clip, "Variable", rate + 0.01 * seed, domain=domain)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(lines)
    return root


@pytest.fixture(scope="module")
def lines(folder, tokenizer):
    return compare(tokenizer, read_manifest(folder), PerceptualMetrics([]), progress=False)


def test_delays_of_whole_samples_and_of_fractions_are_removed():
    x = noise(0)
    frequencies = np.fft.rfftfreq(2 * LENGTH)
    for delay in (0, 5, -9, 3.5):
        spectrum = np.fft.rfft(x, 2 * LENGTH) * np.exp(-2j * np.pi * frequencies * delay)
        shifted = np.fft.irfft(spectrum)[:LENGTH].astype(np.float32)
        aligned, lag, peak = align(shifted, x, RATE)
        assert lag == pytest.approx(delay, abs=0.1)
        assert peak > 0.6
        np.testing.assert_allclose(aligned[100:-100], x[100:-100], atol=0.02)
    for length in (LENGTH - 300, LENGTH + 300):
        aligned, lag, _ = align(np.resize(x, length), x, RATE)
        assert (aligned.shape, lag) == (x.shape, 0)
    _, lag, peak = align(noise(1), x, RATE)
    assert lag == 0
    assert peak < anchors.MIN_PEAK


def test_codecs_are_measured_as_what_they_are(lines):
    late = [line for line in lines if line["codec"] == "Late"]
    for line in late:
        assert line["lag_ms"] == pytest.approx(1000 * 37 / RATE)
        assert line["theirs"]["si_sdr"] == pytest.approx(20, abs=0.5)
        # The noise at half the level: gains are undone.
        assert line["theirs"]["mel"] < 0.5
        assert line["theirs"]["buzz"] < 0.1
    others = [line["theirs"] for line in lines if line["codec"] == "Other"]
    assert all("si_sdr" not in values and values["mel"] > 0.5 for values in others)


def test_ours_is_measured_at_the_same_rate(lines, folder, tokenizer):
    scores = anchors.Scores(read_manifest(folder)[0][0], tokenizer, PerceptualMetrics([]))
    by_count = {n: scores.ours(n) for n in range(1, tokenizer.num_codebooks + 1)}
    for line in lines:
        if line["clip"] != "one":
            continue
        ours, counts = line["ours"], line["codebooks"]
        if line["codec"] == "Other":  # more than all codebooks need
            assert counts == [4]
            assert ours == by_count[4]
            continue
        below, above = (by_count[n] for n in counts)
        assert counts[1] == counts[0] + 1
        assert below["kbps"] <= line["theirs"]["kbps"] < above["kbps"]
        assert ours["kbps"] == pytest.approx(line["theirs"]["kbps"])
        share = (ours["kbps"] - below["kbps"]) / (above["kbps"] - below["kbps"])
        for name in ("si_sdr", "mel", "lsd"):
            assert ours[name] == pytest.approx(np.interp(share, [0, 1], [below[name], above[name]]))


def test_means_are_over_the_clips_that_both_sides_have(lines):
    speech = [line for line in lines if line["clip"] == "one"]
    both = summarize(
        [*speech, *(line | {"domain": "speech"} for line in lines if line not in speech)]
    )
    # "Other" and "Late" have one rate each, "Variable" a lower and a higher one in each clip.
    assert [(r["codec"], r["clips"], round(r["theirs"]["kbps"], 3)) for r in both] == [
        ("Late", 2, 0.9), ("Other", 2, 100), ("Variable", 2, 0.805), ("Variable", 2, 1.105),
    ]  # fmt: skip
    late, other = both[:2]
    values = [line["theirs"]["mel"] for line in lines if line["codec"] == "Late"]
    assert late["theirs"]["mel"] == pytest.approx(np.mean(values))
    assert late["ours_better_by"]["mel"] == pytest.approx(
        late["theirs"]["mel"] - late["ours"]["mel"]
    )
    assert late["ours_better_by"]["si_sdr"] == late["ours"]["si_sdr"] - late["theirs"]["si_sdr"]
    assert "si_sdr" not in other["ours"]


def test_command(folder, tokenizer, tmp_path, monkeypatch, capsys):
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--codecs", "late", "--domains", "speech"]
    arguments += ["--metrics", "--json", tmp_path / "all.json", "--limit", 1]
    monkeypatch.setattr(sys, "argv", ["anchors", str(folder), *map(str, arguments)])
    anchors.main()
    printed = capsys.readouterr().out
    assert "| Late " in printed
    assert "*ours is better by*" in printed
    stored = json.loads((tmp_path / "all.json").read_text())
    assert [line["clip"] for line in stored["clips"]] == ["one"]
    assert all(math.isfinite(value) for value in stored["means"][0]["ours"].values())


def test_bad_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.csv"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="opera"):
        read_manifest(folder, domains=["opera"])
    (tmp_path / "manifest.csv").write_text("path,role\na.wav,original\n")
    with pytest.raises(ValueError, match=r"a\.wav"):
        read_manifest(tmp_path)
