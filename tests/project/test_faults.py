"""A few faults of each kind; ``python tests/support/faults.py`` injects and counts many."""

import pytest
from call_faults import can_trace, cut_short, fail_each_call
from faults import (
    OPERATIONS,
    Injection,
    fresh,
    full_from,
    half_written,
    interrupt_at,
    kill_at,
    start,
)


@pytest.fixture(scope="module")
def injection():
    made = Injection(seed=1)
    yield made
    made.close()


def lost(injection):
    found = [loss for tally in injection.table.values() for loss in tally.losses]
    injection.table.clear()
    return found


# Each kill costs a run and a half: the fast operations get more of them here.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"), [("train", 2), ("fit", 4), ("encode", 4), ("decode", 4), ("prepare", 3)]
)
def test_killed_anywhere_and_started_again(injection, name, kills):
    injection.at_steps(OPERATIONS[name], "kill", kill_at, kills)
    assert lost(injection) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "encode", "prepare"])
def test_a_full_disk_and_an_interruption(injection, name):
    injection.at_steps(OPERATIONS[name], "full", full_from, 2)
    injection.at_steps(OPERATIONS[name], "interrupt", interrupt_at, 1)
    assert lost(injection) == []


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="needs strace")
@pytest.mark.parametrize(("name", "most"), [("encode", None), ("decode to flac", 7)])
def test_each_call_that_changes_a_file_fails_once(injection, name, most):
    assert fail_each_call(injection, OPERATIONS[name], most) >= 8
    cut_short(injection, OPERATIONS[name], 2)
    assert lost(injection) == []


def test_a_file_where_a_folder_should_be(injection):
    for name in ("fit", "prepare"):
        injection.no_folder(OPERATIONS[name])
    assert lost(injection) == []


def test_a_removed_input(injection):
    injection.removed_input(OPERATIONS["fit"], 2)
    assert lost(injection) == []


# The harness itself can fail.


def test_half_written_files_are_found(tmp_path):
    (tmp_path / "out").mkdir()
    for name, content in (("a.json", "{"), ("b.ltk", "x"), ("c.wav", "x"), ("d.npy", "x")):
        (tmp_path / "out" / name).write_text(content)
    (tmp_path / "out" / ".hidden.json").write_text("{")
    assert [line.split(":")[0] for line in half_written(tmp_path)] == [
        "out/a.json", "out/b.ltk", "out/c.wav", "out/d.npy",
    ]  # fmt: skip


def test_a_traceback_is_a_loss(injection):
    def fault(*_):
        raise EOFError("of no use to anybody")

    with fresh(injection.template) as place:
        outcome = start(OPERATIONS["encode"], place, fault)
        assert "EOFError" in (outcome.unclear or "")
        injection.check(OPERATIONS["encode"], "key", place, outcome, "x")
    assert len(lost(injection)) == 1
