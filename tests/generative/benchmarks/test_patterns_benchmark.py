"""The table of patterns: every pattern, counted and trained."""

import json
import sys

import pytest
import torch
from prepared_data import write_prepared

from generative.benchmarks import patterns


@pytest.mark.slow
def test_the_table_has_every_pattern(tokenizer, tmp_path, monkeypatch, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_prepared(tmp_path / "data", tokenizer)
    arguments = ["--codebooks", "2", "--minutes", "0.005", "--width", "16", "--depth", "1"]
    arguments += ["--heads", "2", "--batch-size", "4", "--crop-frames", "16", "--threads", "1"]
    arguments += ["--tokenizer", str(tmp_path / "tokenizer"), "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", ["patterns", str(tmp_path / "data"), *arguments])
    threads = torch.get_num_threads()
    patterns.main()
    torch.set_num_threads(threads)
    rows = {row["pattern"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == {
        *("flatten", "parallel", "delay", "coarse_first", "grouped, 2 frames", "grouped, 4 frames")
    }
    cost = {name: row["multiply_adds"] for name, row in rows.items()}
    assert cost["grouped, 4 frames"] < cost["grouped, 2 frames"] < cost["flatten"]
    assert all(row["steps"] >= 1 and 0 < row["bits_per_code"] < 8 for row in rows.values())
    assert "| delay |" in capsys.readouterr().out
