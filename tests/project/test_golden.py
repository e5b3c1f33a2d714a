"""Files of every released version stay readable; tests/support/make_golden.py wrote them."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from make_golden import KINDS, RATE, golden_codes, golden_counts, golden_header, golden_wave

from datasets_scripts import verify_dataset
from tokenizer.codefile import read_codes, write_codes
from tokenizer.model.latent_tokenizer import LatentTokenizer

RELEASES = sorted(
    path for path in (Path(__file__).parents[1] / "data" / "golden").iterdir() if path.is_dir()
)


def test_every_release_has_its_files():
    assert RELEASES
    for folder in RELEASES:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert size < 100_000, folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_code_files(release, kind, tmp_path):
    path = release / f"{kind}.ltk"
    header, codes = read_codes(path, golden_counts())
    np.testing.assert_array_equal(codes, golden_codes(KINDS[kind][1]))
    assert header == golden_header(kind)
    # Version 1 is what is written today: byte for byte the same, on every machine.
    write_codes(tmp_path / "again.ltk", codes, header, golden_counts())
    assert (tmp_path / "again.ltk").read_bytes() == path.read_bytes()


def test_the_bytes_themselves_are_what_they_were():
    # Who changes a golden file by accident changes this number, too.
    crc = 0
    for path in sorted((RELEASES[0]).glob("*.ltk")):
        crc = zlib.crc32(path.read_bytes(), crc)
    assert crc == 3146705471


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_checkpoints(release):
    expected = json.loads((release / "expected.json").read_text())
    tokenizer = LatentTokenizer.from_pretrained(release / "model")
    assert tokenizer.fingerprint == expected["fingerprint"]
    assert tokenizer.codes_fingerprint == expected["codes_fingerprint"]
    row = tokenizer.encode_codes(golden_wave(), sampling_rate=RATE)
    same = row["codes"] == np.array(expected["codes"])
    assert same.mean() > 0.95  # Another processor may round where two entries are equally near.
    audio = tokenizer.decode_codes(
        {"codes": expected["codes"], "gain": expected["gain"], "num_samples": 800}
    )
    np.testing.assert_allclose(audio[0], expected["audio"], atol=1e-5)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_prepared_datasets(release):
    assert verify_dataset(release / "dataset") == []
