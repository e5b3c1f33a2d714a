"""Hostile input: whatever comes in, it is read, or refused with one clear error.

CI tries the same few inputs each time. More, other ones each time:
``LATOK_FUZZ=5000 pytest tests/project/test_hostile.py``. Guided by coverage: ``python
tests/support/fuzz/run.py``.
"""

import os

import pytest
from hostile import EVIL, WAYS, mutated, survives
from hypothesis import HealthCheck, given, settings, strategies as st

EXAMPLES = int(os.environ.get("LATOK_FUZZ", "0"))
# Those that load a model take long.
SLOW = {"config": 15, "weights": 10, "index": 5, "audio": 60}

edits = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.integers(0, 8),
        st.one_of(st.sampled_from(EVIL), st.binary(max_size=4)),
    ),
    min_size=1,
    max_size=4,
)


def budget(name):
    return settings(
        deadline=None,
        max_examples=EXAMPLES or SLOW.get(name, 40),
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", WAYS)
def test_mutations_of_good_input(name):
    read, seeds = WAYS[name]
    good = seeds()
    if name not in ("weights", "index"):
        assert all(survives(read, seed) is None for seed in good)

    @budget(name)
    @given(which=st.integers(0, len(good) - 1), edits=edits)
    def attempt(which, edits):
        survives(read, mutated(good[which], edits))

    attempt()


@pytest.mark.parametrize("name", WAYS)
def test_junk(name):
    read, _ = WAYS[name]
    for junk in (b"", b"\0" * 1000, b"\xff" * 1000, b"[" * 100_000, b"null", b"[1]", b'"x"', b"{}"):
        survives(read, junk)


@pytest.mark.parametrize("name", WAYS)
def test_every_cut(name):
    read, seeds = WAYS[name]
    for seed in seeds():
        step = max(1, len(seed) // (EXAMPLES or min(6, SLOW.get(name, 12))))
        for length in range(0, len(seed), step):
            survives(read, seed[:length])
