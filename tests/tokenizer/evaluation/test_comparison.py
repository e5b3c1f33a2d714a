import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CODEBOOKS, DIM, ENTRIES, HOP, RATE, make_tokenizer, tone

from tokenizer import LatentTokenizer
from tokenizer.audio import open_audio, write_audio
from tokenizer.cli import main
from tokenizer.evaluation.comparison import (
    CompareConfig,
    Competitor,
    QuantizerSpec,
    compare,
    comparison_markdown,
    parse_spec,
    read_comparison,
    read_specs,
    runner as runner_module,
    trial as trial_module,
    write_summary,
)
from tokenizer.evaluation.comparison.measures import HeldOut, measure_codes
from tokenizer.evaluation.comparison.plots import METRICS, curves
from tokenizer.evaluation.comparison.specs import codebooks_within
from tokenizer.evaluation.comparison.units import unit
from tokenizer.evaluation.evaluate import Condition, evaluate
from tokenizer.evaluation.metrics import quality
from tokenizer.quantizers import QUANTIZERS, ResidualVectorQuantizer
from tokenizer.training.clips import scan
from tokenizer.training.config import CropTrainingConfig
from tokenizer.training.decoder import DecoderTask
from tokenizer.training.quantizer import FitConfig
from tokenizer.transcoding.files import write_row

BITS = RATE / HOP * math.log2(ENTRIES)  # bit/s of one codebook: 400
FIT = FitConfig(segment_seconds=0.5)
CONFIG = CompareConfig(bitrates=(3 * BITS, BITS), codebook_size=ENTRIES, fit=FIT)
LOOP = {"batch_size": 2, "crop_seconds": 0.25, "num_workers": 0, "warmup_steps": 1}
SPECS = ("rvq", "rvq:standardization=channel,beam_width=2")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_tones(root: Path, seconds: float) -> Path:
    # Of another length, the same partials come with other noise.
    root.mkdir()
    for seed in range(6 if seconds == 1 else 3):
        write_audio(root / f"{seed}.wav", tone(seconds, seed=seed), RATE)
    return root


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    return write_tones(root / "train", 1.0), write_tones(root / "held-out", 0.8)


def run(model, audio, out, specs=SPECS, config=CONFIG, **options):
    clips = [scan(folder) for folder in audio]
    found = [parse_spec(spec) for spec in specs]
    return compare(model, *clips, found, out, config, progress=False, **options)


@pytest.fixture(scope="module")
def compared(model, audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    return run(model, audio, out, also=[Competitor("whole", model)]), out


# Specifications


def test_short_form_of_a_quantizer():
    spec = parse_spec("rvq:standardization=channel,beam_width=4")
    assert spec == QuantizerSpec("rvq", {"standardization": "channel", "beam_width": 4})
    assert spec.name == "rvq:standardization=channel,beam_width=4"
    assert parse_spec(spec.name) == spec
    assert parse_spec("rvq").options == {}
    named = parse_spec("rvq:name=the paper's,standardization=channel")
    assert (named.name, dict(named.options)) == ("the paper's", {"standardization": "channel"})
    # What tables call it is no property of the quantizer; its options are.
    assert parse_spec("rvq:beam_width=2").folder != parse_spec("rvq").folder
    assert "/" not in parse_spec("rvq:name=../../x").folder


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vq", "'vq'.* rvq"),
        ("rvq:beam=4", "beam_width"),
        ("rvq:beam_width", "KIND:OPTION=VALUE"),
        ("rvq:beam_width=1,beam_width=2", "twice"),
        ("rvq:per_rate=maybe", "per_rate"),
        ("rvq:dim=3", "'dim'"),
    ],
)
def test_bad_specifications_are_explained(text, part):
    with pytest.raises(ValueError, match=part):
        parse_spec(text)


@pytest.mark.parametrize("option", ["beam_width=0", "beam_width=four", "standardization=best"])
def test_options_that_the_constructor_refuses_name_the_quantizer(option):
    spec = parse_spec(f"rvq:{option}")
    with pytest.raises(ValueError, match="rvq:" + option):
        spec.build(DIM, num_codebooks=2, codebook_size=4)


def test_files_of_quantizers(tmp_path):
    as_json, as_toml = tmp_path / "a.json", tmp_path / "b.toml"
    as_json.write_text('["rvq", {"kind": "rvq", "name": "beam", "beam_width": 2}]')
    as_toml.write_text('[[quantizers]]\nkind = "rvq"\nstandardization = "whiten"\n')
    found = read_specs([str(as_json), str(as_toml), "rvq:beam_width=3"])
    assert [spec.name for spec in found] == [
        "rvq", "beam", "rvq:standardization=whiten", "rvq:beam_width=3",
    ]  # fmt: skip
    assert found[1].options == {"beam_width": 2}
    with pytest.raises(ValueError, match="'rvq'"):
        read_specs([str(as_json), "rvq"])
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        read_specs(["none.toml"])
    for text in ("{", "{}", '{"quantizers": []}', "[3]", '[{"name": "x"}]'):
        as_json.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_specs([str(as_json)])


def test_codebooks_fill_each_rate():
    spec = parse_spec("rvq")
    # 4 bits a codebook: budgets of 13, 12, 4 and 3.9 bits hold 3, 3, 1 and none.
    assert spec.plan(DIM, [13, 12, 4, 3.9], 16) == {3: [3, 1]}
    assert parse_spec("rvq:per_rate=true").plan(DIM, [13, 4], 16) == {3: [3], 1: [1]}
    # Numbers that the options fix stay.
    assert parse_spec("rvq:num_codebooks=2").plan(DIM, [13, 4], 16) == {2: [2, 1]}
    assert parse_spec("rvq:codebook_size=4").plan(DIM, [13], 16) == {6: [6]}
    with pytest.raises(ValueError, match=r"\b4\.00 bits"):
        spec.plan(DIM, [3.9], 16)
    assert codebooks_within((16, 4, 16), 6) == 2


# Measures


@pytest.mark.parametrize("beam_width", [1, 3])
def test_codes_are_those_of_the_tokenizer_at_every_rate(audio, beam_width):
    tokenizer = make_tokenizer(beam_width=beam_width)
    clips = scan(audio[1])
    held_out = HeldOut.encode(tokenizer, clips)
    quantizer = tokenizer.quantizer
    assert quantizer is not None
    found, figures, use = measure_codes(quantizer, held_out, [4, 2], tokenizer.frame_rate)
    for n, rate in zip((4, 2), figures, strict=True):
        for clip, row in zip(clips, held_out.split(found[n]), strict=True):
            direct = tokenizer.encode_codes(clip.audio, n_codebooks=n)
            # A beam's codes are searched for at every rate: prefixes would differ.
            np.testing.assert_array_equal(row["codes"], direct["codes"])
            assert row["num_samples"] == direct["num_samples"]
        x = held_out.frames.double()
        error = (x - quantizer.decode(torch.from_numpy(found[n]).long())).square().sum()
        ratio = error / (x - x.mean(0)).square().sum()
        assert rate["distortion_db"] == pytest.approx(10 * math.log10(ratio), abs=1e-4)
        assert rate["kbps"] == pytest.approx(1e-3 * tokenizer.bitrate(n))
    assert [sum(counts) for counts in use] == [len(found[4])] * CODEBOOKS
    assert use[1] == np.bincount(found[4][:, 1], minlength=ENTRIES).tolist()


def test_coded_rate_is_what_code_files_take():
    tokenizer = make_tokenizer()
    clip = np.concatenate([tone(3.0, seed=seed) for seed in range(8)], axis=1)
    row = tokenizer.encode_latents(clip, sampling_rate=RATE)
    held_out = HeldOut((), (row,), 24.0, 1.0)
    assert tokenizer.quantizer is not None
    codes, figures, _ = measure_codes(tokenizer.quantizer, held_out, [4], tokenizer.frame_rate)
    size = write_row(io.BytesIO(), held_out.split(codes[4])[0], tokenizer)
    # Headers and checksums come on top: about 100 bytes.
    assert 8e-3 * (size - 150) / 24 < figures[0]["kbps_coded"] <= 8e-3 * size / 24
    assert figures[0]["kbps_coded"] < 0.999 * figures[0]["kbps"]


# The whole


def test_a_comparison_agrees_with_evaluating_its_tokenizers(compared, audio, model):
    result, out = compared
    assert [entry["name"] for entry in result["entries"]] == [*SPECS, "whole"]
    clips = scan(audio[1])
    for entry in result["entries"]:
        path = model if entry["source"] == "also" else out / entry["fits"][0]["model"]
        tokenizer = LatentTokenizer.from_pretrained(path)
        for rate in entry["rates"]:
            decoder = tokenizer.codes_decoder
            condition = Condition(rate["n_codebooks"], decoder)
            expected = evaluate(tokenizer, clips, [condition], progress=False)
            mean = expected["conditions"][condition.name]["mean"]
            heard = rate[decoder]
            assert heard["si_sdr"] == pytest.approx(mean["si_sdr"], abs=1e-3)
            assert heard["mel"] == pytest.approx(mean["mel"], rel=1e-4)
            n = rate["n_codebooks"]
            assert rate["entropy"] == pytest.approx(mean["entropy"])
            assert rate["kbps"] == pytest.approx(n * BITS / 1000)
            assert len(heard["per_clip"]) == len(clips)
            # The real file is the same plus headers.
            assert mean["kbps"] > rate["kbps_coded"] > 0
    exact = LatentTokenizer.from_pretrained(model)
    clip = result["continuous"]["per_clip"][0]
    row = exact.encode_latents(str(audio[1] / "0.wav"))
    original = open_audio(str(audio[1] / "0.wav"), target_rate=RATE).read()
    wave = exact.decode_latents(row)
    assert clip["si_sdr"] == pytest.approx(quality(wave, original, RATE)["si_sdr"], abs=1e-3)


def test_quantizers_see_the_same_latents_and_rates(compared):
    result, out = compared
    plain, standardized, whole = result["entries"]
    assert [rate["n_codebooks"] for rate in plain["rates"]] == [3, 1]
    for entry in (plain, standardized):
        high, low = entry["rates"]
        assert high["distortion_db"] < low["distortion_db"] < 0
        assert entry["fits"][0]["frames"] == plain["fits"][0]["frames"] > 0
        assert entry["fits"][0]["seconds"] > 0
        assert entry["fits"][0]["size_mib"] > 0
    # Latents of its own: no distortion that compares.
    assert {rate["distortion_db"] for rate in whole["rates"]} == {None}
    tokenizer = LatentTokenizer.from_pretrained(out / standardized["fits"][0]["model"])
    assert isinstance(tokenizer.quantizer, ResidualVectorQuantizer)
    assert tokenizer.quantizer.standardization == "channel"
    assert tokenizer.quantizer.beam_width == 2


def test_summary_and_curves(compared, tmp_path):
    result, _ = compared
    text = write_summary(result, tmp_path)
    assert text == comparison_markdown(result)
    for entry in result["entries"]:
        assert text.count(f"| {entry['name']} ") == 3  # two rates, and costs
    for metric in METRICS:
        picture = (tmp_path / f"{metric}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    lines = curves(result, "si_sdr")
    # The bundle's own finetuned decoder is the third's only one.
    assert [line["decoder"] for line in lines] == ["continuous", "continuous", "finetuned"]
    assert len(curves(result, "distortion_db")) == 2
    assert lines[0]["values"] == [r["continuous"]["si_sdr"] for r in result["entries"][0]["rates"]]


def test_a_killed_run_goes_on_where_it_was(compared, model, audio, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    fitted, heard = [], []
    fit, listen = trial_module.fit_quantizer, trial_module.measure_audio

    def counted(tokenizer, clips, quantizer, **options):
        fitted.append(quantizer.standardization)
        return fit(tokenizer, clips, quantizer, **options)

    def dies_on_the_second(*args, **options):
        heard.append(1)
        if len(heard) == 3:  # continuous latents, the first quantizer, the second
            raise Killed
        return listen(*args, **options)

    monkeypatch.setattr(trial_module, "fit_quantizer", counted)
    for module in (runner_module, trial_module):
        monkeypatch.setattr(module, "measure_audio", dies_on_the_second)
    with pytest.raises(Killed):
        run(model, audio, tmp_path)
    assert fitted == ["none", "channel"]
    assert len(read_comparison(tmp_path)["entries"]) == 1
    result = run(model, audio, tmp_path)
    assert fitted == ["none", "channel"]
    assert len(heard) == 4

    def without_times(value):
        if isinstance(value, dict):
            timed = ("seconds", "peak_mib", "machine")
            return {
                k: without_times(v)
                for k, v in value.items()
                if k not in timed and not k.endswith(("_x", "_per_second"))
            }
        return [without_times(v) for v in value] if isinstance(value, list) else value

    complete = {**compared[0], "entries": compared[0]["entries"][:2]}
    assert without_times(result) == without_times(complete)
    # Asked for more, it computes only what is new; asked for something else, nothing old is used.
    run(model, audio, tmp_path, specs=[*SPECS, "rvq:standardization=scalar"])
    assert fitted == ["none", "channel", "scalar"]
    other = CompareConfig((3 * BITS, BITS), ENTRIES, FitConfig(segment_seconds=0.5, seed=1))
    run(model, audio, tmp_path, config=other, specs=["rvq"])
    assert fitted == ["none", "channel", "scalar", "none"]


def test_units_are_kept_by_what_was_asked(tmp_path):
    path = tmp_path / "unit.json"
    assert unit(path, {"a": (1,)}, lambda: {"b": 1}) == {"b": 1}
    assert unit(path, {"a": [1]}, lambda: {"b": 2}) == {"b": 1}
    assert unit(path, {"a": [2]}, lambda: {"b": 3}) == {"b": 3}
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        unit(path, {}, dict)


def test_a_quantizer_for_each_rate(model, audio, tmp_path):
    result = run(model, audio, tmp_path, specs=["rvq:per_rate=true,name=each", "rvq"])
    each, shared = result["entries"]
    assert [fit["num_codebooks"] for fit in each["fits"]] == [3, 1]
    assert [rate["n_codebooks"] for rate in each["rates"]] == [3, 1]
    # Residual codebooks are fitted one after another, with the same draws: prefixes are equal.
    for one, other in zip(each["rates"], shared["rates"], strict=True):
        assert one["distortion_db"] == pytest.approx(other["distortion_db"])


@pytest.mark.slow
def test_finetuned_decoders_are_measured_on_the_same_codes(model, audio, tmp_path, monkeypatch):
    # Half a minute of validation is not what this is about.
    monkeypatch.setattr(DecoderTask, "validate", lambda *_: {})
    loop = CropTrainingConfig(4, **LOOP)
    config = CompareConfig((3 * BITS, BITS), ENTRIES, FIT, loop)
    result = run(model, audio, tmp_path, specs=["rvq"], config=config)
    (entry,) = result["entries"]
    tokenizer = LatentTokenizer.from_pretrained(tmp_path / entry["fits"][0]["finetuned_model"])
    assert tokenizer.codes_decoder == "finetuned"
    for rate in entry["rates"]:
        name = Condition(rate["n_codebooks"], "finetuned")
        expected = evaluate(tokenizer, scan(audio[1]), [name], progress=False)
        mean = expected["conditions"][name.name]["mean"]
        assert rate["finetuned"]["si_sdr"] == pytest.approx(mean["si_sdr"], abs=1e-3)
        assert rate["finetuned"]["mel"] != rate["continuous"]["mel"]
    assert "finetuned" in comparison_markdown(result)
    # The same again costs nothing; a longer schedule starts afresh.
    assert run(model, audio, tmp_path, specs=["rvq"], config=config) == result
    longer = CompareConfig((3 * BITS, BITS), ENTRIES, FIT, CropTrainingConfig(5, **LOOP))
    again = run(model, audio, tmp_path, specs=["rvq"], config=longer)["entries"][0]
    assert again["rates"][0]["continuous"] == entry["rates"][0]["continuous"]
    assert again["rates"][0]["finetuned"] != entry["rates"][0]["finetuned"]


def test_what_cannot_be_compared_is_refused_first(model, audio, tmp_path):
    with pytest.raises(ValueError, match="Nothing to compare"):
        run(model, audio, tmp_path / "x", specs=[])
    with pytest.raises(ValueError, match="'rvq'"):
        run(model, audio, tmp_path / "x", specs=["rvq"], also=[Competitor("rvq", model)])
    with pytest.raises(ValueError, match=r"\b4\.00 bits"):
        run(model, audio, tmp_path / "x", config=CompareConfig((100,), ENTRIES, FIT))
    other = LatentTokenizer.from_pretrained(model)
    other.config.autoencoder = {**other.config.autoencoder, "sampling_rate": 2 * RATE}
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="16000 Hz"):
        run(model, audio, tmp_path / "x", also=[Competitor("other", str(tmp_path / "other"))])
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="positive"):
        CompareConfig(bitrates=(0,))


def test_names_of_other_tokenizers():
    assert Competitor.parse("E2E (1)=runs/a/model") == Competitor("E2E (1)", "runs/a/model")
    assert Competitor.parse("runs/a/model") == Competitor("a", "runs/a/model")


def test_command(model, audio, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", model, *audio, "--out", out, "--codebooks", 2, 1, "--codebook-size", 16]
    command += ["--segment-seconds", 0.5, "--quantizers", "rvq", "--also", f"bundle={model}"]
    assert main([str(part) for part in command]) == 0
    printed = capsys.readouterr().out
    assert "| rvq " in printed
    assert "| bundle " in printed
    result = json.loads((out / "comparison.json").read_text())
    assert [rate["n_codebooks"] for rate in result["entries"][0]["rates"]] == [2, 1]
    assert (out / "comparison.md").read_text().startswith("# Quantizers on one representation")
    assert main([str(p) for p in [*command, "--quantizers", "rvq:beam=2"]]) == 2
    assert "beam_width" in capsys.readouterr().err


def test_users_own_quantizers_take_part(model, audio, tmp_path, monkeypatch):
    class Coarse(ResidualVectorQuantizer):
        kind = "coarse"

        def __init__(self, dim: int, num_codebooks: int) -> None:
            super().__init__(dim, num_codebooks, 4)
            self.num_books = num_codebooks

        def to_config(self) -> dict:
            return {"dim": self.dim, "num_codebooks": self.num_books}

    monkeypatch.setitem(QUANTIZERS, "coarse", Coarse)
    result = run(model, audio, tmp_path, specs=["coarse"])
    # Two bits a codebook: twice as many for the same rate.
    assert [rate["n_codebooks"] for rate in result["entries"][0]["rates"]] == [6, 2]


def test_multichannel_clips(tmp_path, model):
    (tmp_path / "a").mkdir()
    write_audio(tmp_path / "a" / "stereo.wav", tone(1.0, channels=2), RATE)
    result = run(model, (tmp_path / "a", tmp_path / "a"), tmp_path / "out", specs=["rvq"])
    assert math.isfinite(result["entries"][0]["rates"][0]["continuous"]["si_sdr"])


def test_rates_that_a_quantizer_refuses_are_left_out():
    # FSQ rounds two of eight components with each codebook of four by four levels.
    spec = parse_spec("fsq:levels=[4,4]")
    assert spec.plan(DIM, [24, 16, 4], ENTRIES) == {4: [4, 1]}
    with pytest.raises(ValueError, match="Cannot build"):
        parse_spec("fsq:levels=[4,4],num_codebooks=6").plan(DIM, [16], ENTRIES)
