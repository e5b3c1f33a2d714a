"""What `datasets` and torchcodec hand over, where torchcodec is installed and finds FFmpeg."""

import shutil
import subprocess

import datasets
import numpy as np
import pytest
import soundfile
from models import RATE, tone

from datasets_scripts import prepare_dataset

try:
    # Without a fitting FFmpeg, or torch, it is installed and raises.
    from torchcodec.decoders import AudioDecoder
except (ImportError, RuntimeError, OSError) as error:
    pytest.skip(f"no torchcodec: {error}", allow_module_level=True)


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(0.5).T, RATE, subtype="FLOAT")
    return tmp_path / "x.wav"


def test_a_decoder_is_read_like_its_file(tokenizer, wav):
    expected = tokenizer.encode_codes(wav)
    found = tokenizer.encode_codes(AudioDecoder(str(wav)))
    assert found["num_samples"] == expected["num_samples"]
    np.testing.assert_array_equal(found["codes"], expected["codes"])


def test_an_audio_column_is_mapped_as_it_is(tokenizer, wav):
    column = datasets.Dataset.from_dict({"audio": [str(wav)] * 2})
    column = column.cast_column("audio", datasets.Audio())
    expected = tokenizer.encode_codes(wav)["codes"]
    for options in ({}, {"batched": True, "batch_size": 2}):
        mapped = column.map(tokenizer.encode_codes, **options).with_format("numpy")
        for row in mapped.select_columns(["codes"]):
            np.testing.assert_array_equal(row["codes"], expected)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="makes AAC with ffmpeg")
def test_formats_that_only_it_reads_are_prepared(tokenizer, wav, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    subprocess.run(["ffmpeg", "-v", "error", "-i", wav, folder / "x.m4a"], check=True)
    manifest = prepare_dataset("audiofolder", folder, tmp_path / "o", tokenizer=tokenizer)
    assert not manifest.failures
    found = datasets.load_dataset("parquet", data_dir=str(tmp_path / "o" / "data"))["train"][0]
    samples = AudioDecoder(str(folder / "x.m4a")).get_all_samples()
    expected = tokenizer.encode_codes(samples.data.numpy(), sampling_rate=samples.sample_rate)
    np.testing.assert_array_equal(found["codes"], expected["codes"])
