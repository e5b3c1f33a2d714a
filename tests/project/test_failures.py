"""Inputs that once did harm: crashed, hung, took gigabytes, or ended with an unclear error.

tests/data/failures/WAY/NAME holds one each; WAY is one of `hostile.WAYS`. They are as small as they
can be. A new one comes with the mend of what it broke.
"""

import resource
import time
from pathlib import Path

import pytest
from hostile import WAYS, survives

FILES = sorted(path for path in (Path(__file__).parents[1] / "data" / "failures").glob("*/*"))


def test_there_are_some():
    assert len(FILES) >= 10
    assert {path.parent.name for path in FILES} <= set(WAYS)
    assert sum(path.stat().st_size for path in FILES) < 2**16


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_failures_of_the_past(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    message = survives(WAYS[path.parent.name][0], path.read_bytes())
    # Names say what must become of them.
    assert (message is None) == path.name.startswith("harmless"), message
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB
