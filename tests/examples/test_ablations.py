import json
import sys
from pathlib import Path

import pytest
import torch
from models import tone

from tokenizer.audio import write_audio
from tokenizer.autoencoders import AUTOENCODERS, build_autoencoder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ablations

    yield ablations
    for family in (ablations.PlainLapped, ablations.EnvelopeLapped):
        AUTOENCODERS.pop(family.kind, None)
    sys.modules.pop("ablations")


TINY = "--steps 2 --batch-size 2 --mixed-precision no --encoder-width 8 --encoder-depth 1 " \
    "--decoder-width 8 --decoder-depth 1 --iterations 1 --clips 1 --max-frames 2000"  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* latents for codebooks")
def test_variants_are_measured_once(ablations, monkeypatch, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    for i in range(6):
        write_audio(tmp_path / f"audio/{i}.wav", tone(2.0, rate=44_100, seed=i), 44_100)
    monkeypatch.setattr(ablations, "RATES", (2000, 1000))
    command = ["ablations.py", str(tmp_path / "audio"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "base", "features", *TINY.split()])
    ablations.main()
    table = capsys.readouterr().out
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == ["base", "plain features", "envelope-normalised features"]
    assert (tmp_path / "out/ablations.md").read_text() == table

    result = tmp_path / "out/base/result.json"
    changed = json.loads(result.read_text()) | {"si_sdr continuous": 123.0}
    result.write_text(json.dumps(changed))
    ablations.main()
    assert "123.00 /" in capsys.readouterr().out


def test_variants_differ_in_what_their_encoders_see(ablations):
    c = torch.randn(1, 20, 80)
    seen = [
        family.features(c)
        for family in (ablations.LappedEncoder, ablations.PlainEncoder, ablations.EnvelopeEncoder)
    ]
    assert all(x.shape == (1, 20, 160) for x in seen)
    # Over its envelope a signal looks the same at any level.
    quiet = ablations.EnvelopeEncoder.features(c / 10)
    assert torch.allclose(quiet[..., :80], seen[2][..., :80], atol=1e-3)
    for family in (ablations.PlainLapped, ablations.EnvelopeLapped):
        sizes = ablations.LappedConfig(8000, 80, 8, 8, 1, 8, 1)
        assert isinstance(
            build_autoencoder({"kind": family.kind, **family(sizes).to_config()}), family
        )
