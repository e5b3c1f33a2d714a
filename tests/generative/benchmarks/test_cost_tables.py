"""The tables of patterns and of patches: each one is counted and trained."""

import json
import sys

import pytest
import torch
from prepared_data import write_prepared

from generative.benchmarks import patches, patterns


@pytest.fixture
def table(tokenizer, tmp_path, monkeypatch):
    """Runs a benchmark on a tiny dataset and returns its rows."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_prepared(tmp_path / "data", tokenizer)
    small = ["--minutes", "0.005", "--width", "16", "--depth", "1", "--heads", "2"]
    small += ["--batch-size", "4", "--crop-frames", "16", "--threads", "1"]
    small += ["--tokenizer", str(tmp_path / "tokenizer"), "--json", str(tmp_path / "rows.json")]

    def run(benchmark, *arguments: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "data"), *small, *arguments])
        threads = torch.get_num_threads()
        benchmark.main()
        torch.set_num_threads(threads)
        return json.loads((tmp_path / "rows.json").read_text())

    return run


@pytest.mark.slow
def test_a_token_of_more_frames_costs_less(table, capsys):
    rows = table(patches, "--patch-frames", "1", "2", "4")
    assert [row["patch_frames"] for row in rows] == [1, 2, 4]
    costs = [row["multiply_adds"] for row in rows]
    assert costs == sorted(costs, reverse=True)
    assert all(row["steps"] >= 1 and row["loss"] > 0 for row in rows)
    assert "| 4 |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_has_every_pattern(table, capsys):
    rows = {row["pattern"]: row for row in table(patterns, "--codebooks", "2")}
    assert set(rows) == {
        *("flatten", "parallel", "delay", "coarse_first", "grouped, 2 frames", "grouped, 4 frames")
    }
    cost = {name: row["multiply_adds"] for name, row in rows.items()}
    assert cost["grouped, 4 frames"] < cost["grouped, 2 frames"] < cost["flatten"]
    assert all(row["steps"] >= 1 and 0 < row["bits_per_code"] < 8 for row in rows.values())
    assert "| delay |" in capsys.readouterr().out
