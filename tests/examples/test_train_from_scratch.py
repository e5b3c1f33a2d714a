"""The example that trains other libraries' classes from scratch, in a few steps."""

import sys
from pathlib import Path

from models import RATE, tone

from tokenizer.audio import write_audio

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_table_has_a_column_for_each_doubling(tmp_path, monkeypatch, capsys):
    (tmp_path / "audio").mkdir()
    for i in range(3):
        write_audio(tmp_path / f"audio/{i}.wav", tone(1.0, seed=i), RATE)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_from_scratch

    command = ["train_from_scratch.py", "--out", str(tmp_path), "--audio", str(tmp_path / "audio")]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "2", "--doublings", "1"])
    train_from_scratch.main()
    table = capsys.readouterr().out.rpartition("| steps")[2].splitlines()
    assert table[0] == " | 1 | 2 |"
    names = [line.split("|")[1].strip() for line in table[2:]]
    kinds = ("dac", "oobleck")
    assert names == [f"{k}, {figure}" for k in kinds for figure in ("mel distance", "SNR in dB")]
    for line in table[2:]:
        assert len([float(x) for x in line.split("|")[2:4]]) == 2
