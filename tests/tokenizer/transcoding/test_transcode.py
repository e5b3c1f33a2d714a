import numpy as np
import pytest
import soundfile
import torch
from models import CODEBOOKS, RATE, make_tokenizer, read_row, tone

from tokenizer import CodeFileError
from tokenizer.audio import write_audio
from tokenizer.cli.coding import describe
from tokenizer.transcoding.files import coded_size, decode_file, encode_file, write_row


def wav(path, wave: np.ndarray, rate: int = RATE):
    write_audio(path, wave, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize(("seconds", "channels"), [(0.01, 1), (0.5, 2), (12.3, 1), (12.3, 3)])
def test_files_and_rows_are_the_same_codes_and_audio(tokenizer, tmp_path, seconds, channels):
    audio = wav(tmp_path / "in.wav", tone(seconds, channels=channels))
    row = tokenizer.encode_codes(audio, n_codebooks=3)
    encode_file(tokenizer, audio, tmp_path / "file.ltk", n_codebooks=3)
    write_row(tmp_path / "row.ltk", row, tokenizer)
    assert (tmp_path / "file.ltk").read_bytes() == (tmp_path / "row.ltk").read_bytes()
    again = read_row(tmp_path / "file.ltk", tokenizer)
    assert again.keys() == row.keys()
    for name in row:
        np.testing.assert_array_equal(again[name], row[name])
    assert again["codes"].dtype == row["codes"].dtype
    decode_file(tokenizer, tmp_path / "file.ltk", tmp_path / "out.wav", subtype="FLOAT")
    out, rate = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    assert rate == RATE
    assert out.T.shape == soundfile.read(audio, always_2d=True)[0].T.shape
    np.testing.assert_array_equal(out.T, tokenizer.decode_codes(row))


def test_fewer_codebooks_and_another_decoder(tokenizer, tmp_path):
    row = tokenizer.encode_codes(tone(0.5), sampling_rate=RATE)
    write_row(tmp_path / "a.ltk", row, tokenizer)
    decode_file(
        tokenizer,
        tmp_path / "a.ltk",
        tmp_path / "a.wav",
        n_codebooks=2,
        decoder="continuous",
        subtype="FLOAT",
    )
    out, _ = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    prefix = row | {"codes": row["codes"][:, :2]}
    np.testing.assert_array_equal(out.T, tokenizer.decode_codes(prefix, decoder="continuous"))
    with pytest.raises(ValueError, match=rf"n_codebooks=9 .*{CODEBOOKS}"):
        decode_file(tokenizer, tmp_path / "a.ltk", tmp_path / "b.wav", n_codebooks=9)
    assert not (tmp_path / "b.wav").exists()


def test_files_are_smaller_than_the_nominal_rate_and_info_tells(tokenizer, tmp_path):
    wave = tone(20.0)
    encode_file(tokenizer, wav(tmp_path / "a.wav", wave), tmp_path / "a.ltk")
    size = (tmp_path / "a.ltk").stat().st_size
    assert 8 * size / 20 < tokenizer.bitrate() * 1.05
    told = describe(tmp_path / "a.ltk")
    assert told["model"] == tokenizer.codes_fingerprint
    assert told["duration"].startswith("20.000 s, 160000 samples")
    assert f"{size} bytes" in told["bitrate"]


def test_finetuning_keeps_code_files_and_another_quantizer_does_not(tokenizer, tmp_path):
    write_row(tmp_path / "a.ltk", tokenizer.encode_codes(tone(0.2), sampling_rate=RATE), tokenizer)
    other = make_tokenizer()
    with torch.no_grad():
        other.finetuned_decoder.head.bias += 1
    assert other.fingerprint != tokenizer.fingerprint
    assert read_row(tmp_path / "a.ltk", other)["num_samples"] == RATE // 5
    other.quantizer.codebooks[0, 0, 0] += 1
    with pytest.raises(CodeFileError, match=tokenizer.codes_fingerprint):
        read_row(tmp_path / "a.ltk", other)
    with pytest.raises(CodeFileError, match=other.codes_fingerprint):
        decode_file(other, tmp_path / "a.ltk", tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_audio_that_wav_cannot_hold_is_refused_before_it_is_decoded(
    tokenizer, tmp_path, monkeypatch
):
    write_row(tmp_path / "a.ltk", tokenizer.encode_codes(tone(0.5), sampling_rate=RATE), tokenizer)
    monkeypatch.setattr("tokenizer.audio.writing._WAV_LIMIT", RATE // 2)
    decode = tokenizer.decode_stream
    monkeypatch.setattr(tokenizer, "decode_stream", lambda *_: pytest.fail("It was decoded."))
    with pytest.raises(ValueError, match=r"4 GiB.*use \.flac"):
        decode_file(tokenizer, tmp_path / "a.ltk", tmp_path / "a.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ltk"]
    monkeypatch.setattr(tokenizer, "decode_stream", decode)
    decode_file(tokenizer, tmp_path / "a.ltk", tmp_path / "a.flac")


def test_the_size_of_a_row_is_that_of_its_file(tokenizer, tmp_path):
    row = tokenizer.encode_codes(tone(1.3, channels=2), sampling_rate=RATE)
    write_row(tmp_path / "a.ltk", row, tokenizer)
    assert coded_size(row, tokenizer) == (tmp_path / "a.ltk").stat().st_size


def test_damaged_and_cut_files_leave_nothing_behind(tokenizer, tmp_path):
    write_row(tmp_path / "a.ltk", tokenizer.encode_codes(tone(2.0), sampling_rate=RATE), tokenizer)
    data = bytearray((tmp_path / "a.ltk").read_bytes())
    (tmp_path / "cut.ltk").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.ltk").write_bytes(data)
    for name in ("cut", "bad"):
        with pytest.raises(CodeFileError):
            decode_file(tokenizer, tmp_path / f"{name}.ltk", tmp_path / "out.wav")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ltk", "bad.ltk", "cut.ltk"]


def test_a_failing_source_leaves_nothing_behind(tokenizer, tmp_path):
    wave = tone(14.0)
    wave[0, 100_000] = np.nan
    with pytest.raises(ValueError, match=r"NaN|finite"):
        encode_file(tokenizer, {"array": wave, "sampling_rate": RATE}, tmp_path / "a.ltk")
    assert list(tmp_path.iterdir()) == []
