"""What users of `transformers`, `diffusers` and pandas expect of a tokenizer."""

import subprocess
import sys
from copy import deepcopy

import numpy as np
import pandas
import pytest
import torch
from models import RATE, tone
from transformers import AutoFeatureExtractor, AutoProcessor

from tokenizer import LatentTokenizer


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, "auto"])
def test_loaded_in_any_precision_the_codes_are_the_same(tokenizer, tmp_path, name, dtype):
    tokenizer.save_pretrained(tmp_path)
    again = LatentTokenizer.from_pretrained(tmp_path, **{name: dtype})
    assert again.fingerprint == tokenizer.fingerprint
    assert again.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "flash_attention_2"},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"low_cpu_mem_usage": True},
    ],
)
def test_options_of_loading_that_change_no_codes(tokenizer, tmp_path, options):
    tokenizer.save_pretrained(tmp_path)
    again = LatentTokenizer.from_pretrained(tmp_path, **options)
    row = tokenizer.encode_codes(tone(1.0), sampling_rate=RATE)
    np.testing.assert_array_equal(
        again.encode_codes(tone(1.0), sampling_rate=RATE)["codes"], row["codes"]
    )
    np.testing.assert_array_equal(again.decode_codes(row), tokenizer.decode_codes(row))


def test_a_mistyped_folder_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/modle", "./modle", "/modle"):
        with pytest.raises(FileNotFoundError, match=f"No such .*{name}"):
            LatentTokenizer.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match=r"user/model is no folder here"):
        LatentTokenizer.from_pretrained("user/model", local_files_only=True)


def test_of_a_configuration_and_weights_without_files(tokenizer):
    parts = {"config": deepcopy(tokenizer.config), "state_dict": tokenizer.state_dict()}
    again, info = LatentTokenizer.from_pretrained(None, **parts, output_loading_info=True)
    assert again.fingerprint == tokenizer.fingerprint
    assert not info["missing_keys"]
    del parts["state_dict"]["latents_mean"]
    with pytest.raises(ValueError, match="latents_mean"):
        LatentTokenizer.from_pretrained(None, **parts)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.half(),
        lambda t: t.to(torch.bfloat16),
        lambda t: t.to("cpu", torch.float16),
        lambda t: t.double(),
    ],
)
def test_moved_to_any_precision_the_codes_are_the_same(tokenizer, change):
    changed = change(deepcopy(tokenizer))
    row = tokenizer.encode_codes(tone(1.0), sampling_rate=RATE)
    again = changed.encode_codes(tone(1.0), sampling_rate=RATE)
    np.testing.assert_array_equal(again["codes"], row["codes"])
    np.testing.assert_array_equal(changed.decode_codes(row), tokenizer.decode_codes(row))
    assert changed.fingerprint == tokenizer.fingerprint


def test_subfolders_and_variants(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "part", variant="fp16")
    again = LatentTokenizer.from_pretrained(tmp_path, subfolder="part", variant="fp16")
    assert again.fingerprint == tokenizer.fingerprint
    with pytest.raises(FileNotFoundError, match=r"part lacks .*model\.safetensors"):
        LatentTokenizer.from_pretrained(tmp_path / "part")
    with pytest.raises(FileNotFoundError, match="other"):
        LatentTokenizer.from_pretrained(tmp_path, subfolder="other")


@pytest.mark.parametrize("sizes", [("20KB", None), (None, "20KB"), ("5KB", "20KB")])
def test_saving_replaces_weights_in_any_number_of_files(tokenizer, tmp_path, sizes):
    (tmp_path / "note.safetensors").touch()
    changed = deepcopy(tokenizer)
    changed.latents_mean += 1
    for model, size in zip((changed, tokenizer), sizes, strict=True):
        model.save_pretrained(tmp_path, **({} if size is None else {"max_shard_size": size}))
    assert LatentTokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint
    assert (tmp_path / "model.safetensors").exists() == (sizes[1] is None)
    assert (tmp_path / "note.safetensors").exists()


def test_rows_of_pandas(tokenizer):
    rows = [tokenizer.encode_codes(tone(s), sampling_rate=RATE) for s in (0.5, 1.0)]
    rows = [row | tokenizer.encode_latents(tone(s), sampling_rate=RATE)
            for row, s in zip(rows, (0.5, 1.0), strict=True)]  # fmt: skip
    table = pandas.DataFrame(rows)
    # As Arrow gives tables to pandas: an array of arrays a cell.
    for name in ("codes", "latents"):
        table[name] = [pandas.Series(list(x)).to_numpy() for x in table[name]]
    for decode in (tokenizer.decode_codes, tokenizer.decode_latents):
        expected = [decode(row) for row in rows]
        for i in range(len(rows)):
            np.testing.assert_array_equal(decode(table.iloc[i]), expected[i])
            np.testing.assert_array_equal(decode(table.to_dict("records")[i]), expected[i])
        for audio, wanted in zip(decode(table), expected, strict=True):
            np.testing.assert_array_equal(audio, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["tokenizer", "transformers"])
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForAudioTokenization", "AutoConfig"])
def test_auto_classes_know_it_once_both_are_imported(tokenizer, tmp_path, first, auto):
    tokenizer.save_pretrained(tmp_path)
    imports = ["import tokenizer", f"from transformers import {auto}"]
    script = "; ".join(imports if first == "tokenizer" else reversed(imports))
    script += f"; import sys; print({auto}.from_pretrained(sys.argv[1]).__class__.__name__)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    kind = "LatentTokenizerConfig" if auto == "AutoConfig" else "LatentTokenizer"
    assert result.stdout.strip() == kind


def test_it_is_called_as_codecs_are(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert extractor.sampling_rate == processor.sampling_rate == tokenizer.config.sampling_rate
    clips = [tone(0.5)[0], tone(0.9, seed=1)[0]]
    inputs = extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
    encoded = tokenizer.encode(**inputs)
    decoded = tokenizer.decode(audio_codes=encoded.audio_codes, gain=encoded.gain)
    output = tokenizer(**inputs)
    for i, clip in enumerate(clips):
        row = tokenizer.encode_codes(clip, sampling_rate=RATE)
        frames, length = len(row["codes"]), len(clip)
        np.testing.assert_array_equal(encoded.audio_codes[i, :, :frames].T, row["codes"])
        np.testing.assert_array_equal(output.audio_codes[i, :, :frames].T, row["codes"])
        # The last frames see what follows the end: other zeros than those of a clip by itself.
        whole = tokenizer.decode_codes(row)[:, : length // 2]
        for audio in (decoded.audio_values, output.audio_values):
            np.testing.assert_allclose(audio[i, :, : length // 2], whole, atol=1e-5)
        assert not bool(output.audio_values[i, :, length:].any())
    assert output.audio_values.shape == inputs["input_values"].shape
    audio, codes = tokenizer(**inputs, return_dict=False)
    assert torch.equal(audio, output.audio_values)
    assert torch.equal(codes, output.audio_codes)
    with pytest.raises(ValueError, match="latents or audio_codes"):
        tokenizer.decode(encoded.latents, audio_codes=codes)
