import importlib.util
import json
import math
from pathlib import Path

import pytest
from models import ENTRIES, RATE, make_tokenizer, tone

from tokenizer.audio import write_audio
from tokenizer.training.decoder import DecoderTask


def load_example():
    path = Path(__file__).parents[2] / "examples" / "paper_experiments.py"
    spec = importlib.util.spec_from_file_location("paper_experiments", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_papers_experiments_run(tokenizer, tmp_path, monkeypatch, capsys):
    example = load_example()
    tokenizer.save_pretrained(model := tmp_path / "model")
    audio = tmp_path / "train", tmp_path / "held-out"
    for folder, seconds in zip(audio, (1.0, 0.8), strict=True):
        folder.mkdir()
        for seed in range(3):
            write_audio(folder / f"{seed}.wav", tone(seconds, seed=seed), RATE)
    monkeypatch.setattr(DecoderTask, "validate", lambda *_: {})
    make_tokenizer(standardization="channel").save_pretrained(tmp_path / "e2e")
    command = ["paper_experiments.py", *audio, "--out", tmp_path / "out", "--models"]
    command += [f"noisy={model}", f"plain={model}", "--e2e", f"E2E (1)={tmp_path / 'e2e'}"]
    command += ["--bitrates", 1.6, 0.4, "--codebook-size", ENTRIES, "--segment-seconds", 0.5]
    command += ["--finetune", 2, "--batch-size", 2, "--crop-seconds", 0.25, "--num-workers", 0]
    monkeypatch.setattr("sys.argv", [str(part) for part in command])
    example.main()
    text = capsys.readouterr().out.strip()
    assert (tmp_path / "out" / "experiments.md").read_text().strip() == text
    found = json.loads((tmp_path / "out" / "experiments.json").read_text())
    assert list(found["comparisons"]) == ["noisy", "plain"]
    for part in ("sensitivity beats", "Beam search", "Finetuning", "beats E2E (1)", "More bits"):
        about = [claim for claim in found["claims"] if part in claim["claim"]]
        assert {claim["model"] for claim in about} == {"noisy", "plain"}, part
        assert {claim["metric"] for claim in about} == {"SI-SDR dB", "mel"}
        assert all(claim["verdict"] and claim["evidence"] for claim in about)
    # Both models are the same one: so is what is best on their latents.
    assert "The best standardization is the same on all latents." in text
    before = (tmp_path / "out" / "experiments.json").read_bytes()
    example.main()
    assert (tmp_path / "out" / "experiments.json").read_bytes() == before


def test_verdicts_follow_the_figures():
    example = load_example()

    def clips(*values):
        return {"per_clip": [{"si_sdr": v, "mel": -v} for v in values]}

    mean, error = example.difference(clips(2, 3, 4), clips(1, 1, 1), "mel")
    assert (mean, error) == (pytest.approx(2), pytest.approx(1 / math.sqrt(3)))
    assert example.difference(clips(1, 1), clips(2, 2), "si_sdr") == (-1, 0)
    clear, unclear, contrary = (2, 0.5), (0.5, 0.5), (-2, 0.5)
    assert example.verdict([clear, clear]) == "held"
    assert example.verdict([clear, unclear]) == "held in part: 1 of 2"
    assert example.verdict([clear, contrary]) == "held in part: 1 of 2, 1 contrary"
    assert example.verdict([unclear, unclear]) == "did not hold: no clear difference"
    assert example.verdict([contrary]) == "did not hold: the contrary did"
    assert example.verdict([contrary, unclear]) == "did not hold"
