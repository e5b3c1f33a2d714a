"""Every form of input gives the same samples, and bad input one clear error."""

import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tokenizer.audio import BLOCK_LENGTH, is_batch, open_audio, open_batch, open_signal

RATE = 44100


def pcm(channels=2, samples=1000, dtype=np.int16, seed=0):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    return rng.integers(info.min, info.max, (channels, samples), dtype, endpoint=True)


def floats(channels=2, samples=1000):
    return pcm(channels, samples).astype(np.float32) / 2**15


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, pcm().T, 16000)
    return path


def read(value, rate=RATE, **options):
    return open_audio(value, target_rate=rate, **options).read()


@pytest.mark.parametrize("rate", [16000, RATE, 8000])
def test_every_form_gives_the_same_samples(wav, rate):
    x, expected = floats(), read(wav, rate)
    assert expected.shape == (2, round(1000 * rate / 16000))
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(x), sample_rate=16000)
    )
    knows_its_rate = [
        str(wav),
        wav.read_bytes(),
        bytearray(wav.read_bytes()),
        memoryview(wav.read_bytes()),
        io.BytesIO(wav.read_bytes()),
        decoder,
        {"array": x, "sampling_rate": 16000},
        {"array": torch.from_numpy(x), "sampling_rate": np.int64(16000), "path": "gone.wav"},
        {"array": x.tolist(), "sampling_rate": 16000.0},
        {"path": str(wav), "bytes": None},
        {"path": "gone.wav", "bytes": wav.read_bytes()},
        {"path": None, "bytes": wav.read_bytes()},
        {"bytes": wav.read_bytes()},
        {"path": str(wav), "text": "a"},
        {"file": wav},
        {"audio": str(wav), "sampling_rate": 123},
        {"audio": {"path": str(wav), "bytes": None}, "text": "a"},
        {"audio": {"array": x, "sampling_rate": 16000}, "path": "gone.wav"},
        {"audio": decoder},
        {"audio": x, "sampling_rate": 16000},
        {"audio": x.tolist()[0], "sampling_rate": 16000},
    ]
    bare = [
        x,
        torch.from_numpy(x),
        x.astype(np.float64),
        pcm(),
        torch.from_numpy(pcm()),
        x.tolist(),
    ]
    for value in knows_its_rate:
        result = read(value, rate)
        assert np.array_equal(result, expected[: len(result)]), value
    for value in bare:
        assert np.array_equal(read(value, rate, sampling_rate=16000), expected), value
        row = {"audio": value}
        if not is_batch(row):
            assert np.array_equal(read(row, rate, sampling_rate=16000), expected)
    for value in (x[0], pcm()[0], torch.from_numpy(x[0]), x[0].tolist(), tuple(x[0].tolist())):
        assert np.array_equal(read(value, rate, sampling_rate=16000), expected[:1]), value
        assert not is_batch(value)


@pytest.mark.parametrize(
    ("subtype", "suffix", "dtype"),
    [
        ("PCM_16", "wav", "int16"),
        ("PCM_24", "wav", "int32"),
        ("PCM_32", "wav", "int32"),
        ("PCM_U8", "wav", "uint8"),
        ("FLOAT", "wav", "float32"),
        ("DOUBLE", "wav", "float64"),
        ("PCM_16", "flac", "int16"),
        ("PCM_24", "flac", "int32"),
    ],
)
@pytest.mark.parametrize("rate", [48000, RATE])
def test_a_file_and_its_samples_agree_bit_for_bit(tmp_path, subtype, suffix, dtype, rate):
    samples = 2 * BLOCK_LENGTH + 123
    if dtype == "uint8":
        x = pcm(2, samples, np.uint8)
        stored = (x.astype(np.int16) - 128) << 8
    elif dtype.startswith("float"):
        x = stored = floats(2, samples).astype(dtype) * 3
    else:
        x = stored = pcm(2, samples, np.dtype(dtype))
        if subtype == "PCM_24":
            x = stored = x & ~np.int32(255)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, stored.T, 48000, subtype=subtype)
    assert soundfile.info(path).subtype == subtype
    result = read(path, rate)
    assert np.array_equal(result, read(x, rate, sampling_rate=48000))
    assert np.array_equal(result, read(path.read_bytes(), rate))


@pytest.mark.parametrize(
    ("suffix", "form", "subtype"),
    [("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", None)],
)
def test_lossy_files_agree_with_their_decoded_samples(tmp_path, suffix, form, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * floats(2, BLOCK_LENGTH + 99).T, 48000, format=form, subtype=subtype)
    decoded = soundfile.read(path, dtype="float32")[0].T
    assert decoded.shape == (2, BLOCK_LENGTH + 99)
    expected = read(path)
    assert np.array_equal(expected, read(decoded, sampling_rate=48000))
    assert np.array_equal(expected, read(path.read_bytes()))
    assert np.array_equal(expected, read(io.BytesIO(path.read_bytes())))


@pytest.mark.parametrize(
    ("dtype", "low", "middle", "high"),
    [("int16", -(2**15), 0, 2**15 - 1), ("int32", -(2**31), 0, 2**30), ("uint8", 0, 128, 255)],
)
def test_integers_are_scaled(dtype, low, middle, high):
    result = read(np.array([low, middle, high], dtype), 8000, sampling_rate=8000)[0]
    assert result[0] == -1
    assert result[1] == 0
    assert 0.4 < result[2] < 1


def test_floats_of_any_width_keep_their_values():
    x = np.array([-3.5, 0.25, 2.0])
    halves = [torch.tensor(x, dtype=torch.bfloat16), torch.tensor(x, dtype=torch.float16)]
    grown = torch.tensor(x, requires_grad=True)
    for value in (x, x.astype(np.float16), x.astype(">f4"), *halves, grown, x.tolist()):
        assert read(value, 8000, sampling_rate=8000)[0].tolist() == x.tolist()


def test_arrays_in_any_memory_order():
    x = floats(3, 500)
    for value in (np.asfortranarray(x), x[:, ::-1][:, ::-1], torch.from_numpy(x.T.copy()).T):
        assert np.array_equal(read(value, sampling_rate=8000), read(x, sampling_rate=8000))


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_short_clips_of_many_channels(channels, samples):
    x = floats(channels, samples)
    assert np.array_equal(read(x, 8000, sampling_rate=8000), x)


def test_a_stream_is_read_from_where_it_is_and_copied(wav):
    stream = io.BytesIO(b"skip" + wav.read_bytes())
    stream.read(4)
    source = open_audio(stream, target_rate=16000)
    stream.close()
    assert np.array_equal(source.read(), floats())
    assert np.array_equal(source.read(), floats())


def test_text_streams_give_their_bytes(wav):
    with wav.open(encoding="latin-1") as stream:  # As sys.stdin is.
        assert np.array_equal(read(stream, 16000), floats())


def test_temporary_copies_go_with_their_source(wav, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source = open_audio(io.BytesIO(wav.read_bytes()), target_rate=16000)
    blocks = source.blocks()
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    del source
    assert np.array_equal(next(blocks), floats())  # Still in use.
    del blocks
    assert list((tmp_path / "tmp").iterdir()) == []
    for stream in (io.BytesIO(b""), io.BytesIO(b"text"), io.StringIO("text")):
        with pytest.raises(ValueError, match="the stream"):
            open_audio(stream, target_rate=16000)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_can_be_read_again(wav, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(wav.read_bytes()))
    writer.start()
    source = open_audio(pipe, target_rate=16000)
    writer.join()
    assert source.name == str(pipe)
    assert np.array_equal(source.read(), floats())
    assert np.array_equal(source.read(), floats())


def test_names_for_messages(wav):
    assert open_audio(wav, target_rate=8000).name == str(wav)
    assert open_audio({"path": "in/set.wav", "bytes": wav.read_bytes()}, target_rate=8000).name == (
        "in/set.wav"
    )
    items = [np.zeros(5), wav.read_bytes()]
    first, second = open_batch(items, target_rate=8000, sampling_rate=[8000, None])
    assert first.name == "array [5] (item 0 of the batch)"
    assert second.name == "the audio's bytes (item 1 of the batch)"


BATCHES = [
    [],
    ["a.wav", Path("b.wav")],
    ("a.wav",),
    [np.zeros(3), torch.zeros(2, 3)],
    [[0.1, 0.2], [0.3]],
    [{"path": "a.wav", "bytes": None}],
    np.array(["a.wav", "b.wav"]),
    {"audio": []},
    {"audio": ["a.wav"]},
    {"audio": [{"array": [0.1], "sampling_rate": 8000}]},
    {"audio": [[0.1, 0.2], [0.3]]},
    {"path": ["a.wav"]},
    {"file": ("a.wav",)},
    {"bytes": [b"", b""], "path": ["a", "b"]},
    {"array": [[0.1], [0.2]], "sampling_rate": [8000, 8000]},
    {"array": np.zeros((2, 3)), "sampling_rate": np.array([8000, 8000])},
    {"array": torch.zeros(2, 3), "sampling_rate": torch.tensor([8000, 8000])},
    {"array": [[[0.1]]]},
]
SINGLES = [
    "a.wav",
    b"",
    np.zeros(3),
    np.zeros((2, 3)),
    torch.zeros(2, 3),
    [0.1, 0.2],
    (1, 2),
    [np.float32(0.1)],
    {},
    {"text": ["a"]},
    {"audio": "a.wav"},
    {"audio": [0.1, 0.2]},
    {"audio": np.zeros((2, 3))},
    {"audio": {"path": "a.wav", "bytes": None}, "labels": [1, 2]},
    {"array": [[0.1], [0.2]], "sampling_rate": 8000},
    {"array": [], "sampling_rate": 8000},
    {"path": "a.wav", "bytes": None},
    io.BytesIO(b""),
    None,
]


@pytest.mark.parametrize("value", BATCHES, ids=range(len(BATCHES)))
def test_is_a_batch(value):
    assert is_batch(value)


@pytest.mark.parametrize("value", SINGLES, ids=range(len(SINGLES)))
def test_is_no_batch(value):
    assert not is_batch(value)


def test_batches_give_what_their_items_give(wav):
    x, encoded = floats(), wav.read_bytes()
    expected, mono = read(wav), read(x[0], sampling_rate=16000)
    batches = [
        ([str(wav), wav, encoded, {"path": str(wav)}, {"array": x, "sampling_rate": 16000}], None),
        ([x, torch.from_numpy(x), wav], 16000),
        ([x, encoded, pcm()], [16000, None, np.int64(16000)]),
        (np.array([str(wav)] * 2), None),
        ({"audio": [str(wav), encoded], "text": ["a", "b"]}, None),
        ({"audio": [{"path": None, "bytes": encoded}, {"array": x, "sampling_rate": 16000}]}, None),
        ({"bytes": [encoded, None], "path": [None, str(wav)]}, None),
        ({"bytes": [None, encoded], "path": [str(wav), None]}, None),
        ({"file": [wav]}, None),
        ({"array": [x, x.tolist()], "sampling_rate": [16000, 16000]}, None),
        ({"array": [x, x.tolist()], "sampling_rate": [16000, 16000]}, 16000),
        ({"array": np.stack([x, x]), "sampling_rate": np.array([16000, 16000])}, None),
        ({"audio": [x.tolist(), x.tolist()], "sampling_rate": 16000}, None),
    ]
    for value, rate in batches:
        assert is_batch(value)
        sources = open_batch(value, target_rate=RATE, sampling_rate=rate)
        column = value[next(iter(value))] if isinstance(value, dict) else value
        assert len(sources) == len(column)
        for source in sources:
            assert np.array_equal(source.read(), expected), value
    ragged = [x[0].tolist(), x[0].tolist()[:500]]
    for value in (ragged, {"audio": ragged}):
        sources = open_batch(value, target_rate=RATE, sampling_rate=16000)
        assert np.array_equal(sources[0].read(), mono)
        assert sources[1].num_samples == round(500 * RATE / 16000)
    mixed = open_batch([wav], target_rate=RATE, downmix=True)
    assert mixed[0].num_channels == 1
    assert open_batch([], target_rate=RATE) == open_batch({"audio": []}, target_rate=RATE) == []


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_rows_and_batches_of_a_dataset(wav, form):
    datasets = pytest.importorskip("datasets")
    x = floats(1)[0]
    columns = {
        "path": [str(wav)] * 3,
        "audio": [
            {"path": str(wav), "bytes": None},
            {"path": None, "bytes": wav.read_bytes()},
            None,
        ],
        "array": [x.tolist(), x.tolist(), x[:500].tolist()],
        "sampling_rate": [16000] * 3,
    }
    columns["audio"][2] = columns["audio"][0]
    two = read(wav)
    one = [read(np.asarray(a), sampling_rate=16000) for a in columns["array"]]
    for names, expected in (
        (["audio"], [two] * 3),
        (["path"], [two] * 3),
        (["array", "sampling_rate"], one),
    ):
        table = {name: columns[name] for name in names}
        dataset = datasets.Dataset.from_dict(table)
        if names == ["audio"]:
            dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
        dataset = dataset.with_format(form)
        seen = {True: [], False: []}

        def look(value, seen=seen):
            batch = is_batch(value)
            if batch:
                seen[batch] += open_batch(value, target_rate=RATE)
            else:
                seen[batch].append(open_audio(value, target_rate=RATE))

        # A fingerprint of one's own: `datasets` would hash all that the function can reach.
        dataset.map(look, new_fingerprint="rows")
        assert not seen[True]
        assert len(seen[False]) == 3
        dataset.map(look, batched=True, batch_size=2, new_fingerprint="batches")
        assert len(seen[True]) == 3
        look(dataset[0])
        look(dataset[:2])
        assert (len(seen[False]), len(seen[True])) == (4, 5)
        for sources in (seen[False][:3], seen[True][:3]):
            for source, samples in zip(sources, expected, strict=True):
                np.testing.assert_allclose(source.read(), samples, atol=1e-6)


def test_batches_with_one_bad_item_name_it(wav):
    with pytest.raises(ValueError, match=r"array \[4\] .*item 1\b"):
        open_batch([wav, np.zeros(4)], target_rate=RATE)
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        open_batch([wav, "gone.wav"], target_rate=RATE)
    with pytest.raises(ValueError, match=r"NoneType None .*item 1\b"):
        open_batch([wav, None], target_rate=RATE)
    with pytest.raises(ValueError, match=r"item 1\b"):
        open_batch({"bytes": [wav.read_bytes(), None]}, target_rate=RATE)
    with pytest.raises(ValueError, match=r"\b1 sampling rates .*\b2\b"):
        open_batch([np.zeros(4), np.zeros(4)], target_rate=RATE, sampling_rate=[8000])
    with pytest.raises(ValueError, match=r"'sampling_rate' .*\b1\b.*'array' .*\b2\b"):
        open_batch({"array": [[0.1], [0.2]], "sampling_rate": [8000]}, target_rate=RATE)
    with pytest.raises(ValueError, match=r"\['text'\]"):
        open_batch({"text": ["a"]}, target_rate=RATE)


@pytest.mark.parametrize("value", [["a.wav", "b.wav"], {"audio": ["a.wav"]}, {"path": ["a.wav"]}])
def test_a_batch_is_not_one_piece(value):
    with pytest.raises(ValueError, match=r"batch|not a path"):
        open_audio(value, target_rate=RATE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((48000, 2)), r"\b48000 .*\b2\b.*array\.T"),
        (np.zeros((65, 1000)), r"\b65\b"),
        (np.zeros((10, 9)), r"transpose"),
        (np.zeros((1, 2, 3)), r"\[1, 2, 3\].*\[C, N\]"),
        (np.float32(1.0), "float32"),
        (np.zeros(()), "0 axes"),
        (np.zeros(0), r"array \[0\]"),
        (torch.zeros(2, 0), r"array \[2, 0\]"),
        (np.zeros(4, np.int64), "int64.* int16"),
        (np.zeros(4, bool), "bool"),
        (np.zeros(4, complex), "complex128"),
        ([0, 1, 0], "int64"),
        ({"array": [[0.1, 0.2], [0.3]]}, "channels"),
        ({"array": []}, r"array \[0\]"),
        ({"array": None}, r"\['array'\].*'audio', 'array'"),
        ({"path": None, "bytes": None}, r"\['bytes', 'path'\]"),
        ({}, r"'audio', 'array'"),
        ({"bytes": "text"}, "'bytes' .*str 'text'"),
        ({"path": 3}, "'path' .*int 3"),
        (3, "int 3"),
        (None, "NoneType"),
        (b"", "empty"),
        (b"no audio at all", "WAV, FLAC, Ogg"),
    ],
)
def test_what_is_no_audio(value, message):
    with pytest.raises(ValueError, match=message):
        open_audio(value, target_rate=RATE, sampling_rate=RATE)


def test_rates_that_are_missing_or_contradict(wav):
    x = floats()
    for value in (x, torch.from_numpy(x), [0.1, 0.2], {"array": x}, {"audio": x}):
        with pytest.raises(ValueError, match="sampling_rate="):
            open_audio(value, target_rate=RATE)
    for value in (wav, wav.read_bytes(), {"array": x, "sampling_rate": 16000}):
        assert open_audio(value, target_rate=RATE, sampling_rate=16000).source_rate == 16000
        with pytest.raises(ValueError, match=r"sampling_rate=8000 .* 16000 Hz"):
            open_audio(value, target_rate=RATE, sampling_rate=8000)
    for rate in (0, -1, 44100.5, float("nan")):
        with pytest.raises(ValueError, match="positive whole number"):
            open_audio(x, target_rate=RATE, sampling_rate=rate)
        with pytest.raises(ValueError, match="positive whole number"):
            open_audio({"array": x, "sampling_rate": rate}, target_rate=RATE)
    with pytest.raises(ValueError, match=r"target .*\b0\b"):
        open_audio(wav, target_rate=0)


def test_files_that_are_no_audio(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        open_audio(tmp_path / "gone.wav", target_rate=RATE)
    with pytest.raises(ValueError, match="folder"):
        open_audio(str(tmp_path), target_rate=RATE)
    for suffix in ("wav", "flac", "ogg", "mp3", "raw", "txt"):
        path = tmp_path / f"a.{suffix}"
        path.touch()
        with pytest.raises(ValueError, match=rf"a\.{suffix}.*\b0 bytes"):
            open_audio(path, target_rate=RATE)
        path.write_text("This is a text.\n" * 100)
        with pytest.raises(ValueError, match=rf"a\.{suffix} .*WAV, FLAC"):
            open_audio(path, target_rate=RATE)
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 8000)
    with pytest.raises(ValueError, match=r"none\.wav"):
        open_audio(tmp_path / "none.wav", target_rate=RATE)


def test_a_file_with_samples_that_are_not_finite(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.0, np.nan, 1.0]), 8000, subtype="FLOAT")
    source = open_audio(path, target_rate=RATE)
    with pytest.raises(ValueError, match=r"a\.wav .*NaN .*sample 1\)"):
        source.read()


FORMS = [
    ("wav", "WAV", None),
    ("wav", "WAVEX", "FLOAT"),
    ("wav", "RF64", None),
    ("aiff", "AIFF", None),
    ("flac", "FLAC", None),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", None),
]


def encoded(form, subtype=None, channels=2, samples=50_000):
    stream = io.BytesIO()
    wave = 0.1 * floats(channels, samples).T
    soundfile.write(stream, wave, 48000, format=form, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize(("suffix", "form", "subtype"), FORMS)
def test_any_part_of_a_file_is_that_of_the_whole(suffix, form, subtype):
    samples = 200_000
    signal = open_signal(encoded(form, subtype, samples=samples))
    whole = np.concatenate(list(signal.blocks()), axis=-1)
    assert whole.shape == signal.info()[1:] == (2, samples)
    for first, count in ((0, 10), (70_000, 5000), (samples - 3000, 9000), (samples - 1, 1)):
        part = signal.read(first, count)
        assert np.array_equal(part, whole[:, first : first + count]), (suffix, first)
    assert signal.read(samples, 10).shape == signal.read(samples + 5, 10).shape == (2, 0)


def test_any_part_of_an_array_is_that_of_the_whole():
    x = pcm()
    signal = open_signal(x, sampling_rate=8000)
    assert np.array_equal(signal.read(990, 20), floats()[:, 990:])
    assert signal.read(2000, 5).shape == (2, 0)


def test_what_cannot_be_read_in_parts_is_refused(tmp_path):
    for data in (b"", b"no audio"):
        (tmp_path / "a.wav").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.wav"):
            open_signal(tmp_path / "a.wav").read(0, 10)
    signal = open_signal(tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.wav"):
        signal.read(0, 10)


@pytest.mark.parametrize(("suffix", "form", "subtype"), FORMS)
@pytest.mark.parametrize("kept", [0.98, 0.9, 0.5, 0.001])
def test_files_that_are_cut_off_are_refused_after_what_is_left(
    tmp_path, suffix, form, subtype, kept
):
    path, data = tmp_path / f"a.{suffix}", encoded(form, subtype, samples=150_000)
    path.write_bytes(data)
    whole = read(path, 48000)
    cut = data[: int(kept * len(data))]
    path.write_bytes(cut)
    parts = []
    with pytest.raises(ValueError, match=rf"a\.{suffix}") as refused:
        parts.extend(open_audio(path, target_rate=48000).blocks())
    part = np.concatenate([whole[:, :0], *parts], axis=-1)
    assert part.shape[-1] < whole.shape[-1]
    length = max(part.shape[-1] - 4800, 0)  # Codecs that overlap their frames end otherwise.
    assert np.array_equal(part[:, :length], whole[:, :length])
    if kept >= 0.5:
        assert "cut off" in str(refused.value)
    with pytest.raises(ValueError):  # noqa: PT011 (the same words, but for the name)
        read(cut, 48000)


def test_caf_that_is_cut_off_is_refused():
    data = encoded("CAF")
    assert read(data, 48000).shape == (2, 50_000)
    with pytest.raises(ValueError, match=r"200,004 .*199,004"):
        read(data[:-1000], 48000)
    with pytest.raises(ValueError, match="malformed"):
        read(data[:-10_000], 48000)


def test_flac_that_is_cut_between_two_frames_is_refused():
    data = encoded("FLAC")
    refused = 0
    for place in range(len(data) // 2, len(data)):
        if data.startswith(b"\xff\xf8", place):  # Here a frame begins, most often.
            with pytest.raises(ValueError, match="cut off") as error:
                read(data[:place], 48000)
            refused += "header promises 50,000 samples" in str(error.value)
    assert refused


def test_streams_of_unknown_length_are_whole():
    wav, aiff = encoded("WAV"), encoded("AIFF")
    ogg, mp3 = encoded("OGG", "OPUS", samples=100_000), encoded("MP3")
    at, at_aiff = wav.index(b"data") + 4, aiff.index(b"SSND") + 4
    unknown = {
        f"wav {size:x}": wav[:at] + size.to_bytes(4, "little") + wav[at + 4 :]
        for size in (0x7FFFF000, 2**31, 2**32 - 1, 2**32 - 37)
    }
    unknown["aiff"] = aiff[:at_aiff] + (0x7F000008).to_bytes(4, "big") + aiff[at_aiff + 4 :]
    for name, data in unknown.items():
        assert read(data, 48000).shape == (2, 50_000), name
        assert read(io.BytesIO(data[: len(data) // 2]), 48000).shape[-1] < 50_000, name
    # A recorder that leaves out the mark of the end: a stream of pages, as far as it goes.
    pages = [place for place in range(len(ogg)) if ogg.startswith(b"OggS", place)]
    assert 0 < read(ogg[: pages[-1]], 48000).shape[-1] < 100_000
    # Without its Xing header the length of an MP3 file is a guess, here one that is too large.
    at = mp3.index(b"Xing")
    guessed = mp3[:at] + bytes(120) + mp3[at + 120 :]
    sound = soundfile.SoundFile(io.BytesIO(guessed))
    assert read(guessed, 48000).shape[-1] < sound.frames - 2304


@pytest.mark.parametrize("channels", [1, 2])
def test_odd_files_are_whole(channels):
    """Padding, chunks and tags behind the samples, headers that count themselves."""
    wav = encoded("WAV", "PCM_U8", channels, 1001)
    at = wav.index(b"data") + 4
    size = int.from_bytes(wav[at : at + 4], "little")
    chunk = b"LIST" + (5).to_bytes(4, "little") + b"INFOa\0"
    aiff = encoded("AIFF", None, channels, 1001)
    mp3 = encoded("MP3", channels=channels)
    tag = b"ID3\4\0\0\0\0\2\1" + bytes(257)
    for data in (
        wav,
        wav[: at + 4 + size],
        wav + chunk,
        wav[: at - 4] + chunk + wav[at - 4 :],
        aiff,
        aiff + b"ANNO\0\0\0\2hi",
    ):
        assert read(data, 48000).shape == (channels, 1001)
    counted = wav[:at] + len(wav).to_bytes(4, "little") + wav[at + 4 :]
    assert read(counted, 48000).shape[-1] in (1001, 1002)  # With the padding.
    for data in (
        mp3,
        tag + mp3,
        mp3 + b"TAG" + bytes(125),
        encoded("OGG", "VORBIS", channels) + bytes(100),
    ):
        assert read(data, 48000).shape == (channels, 50_000)
    with pytest.raises(ValueError, match="50,000 "):
        read((tag + mp3)[: len(mp3) // 2], 48000)


@pytest.mark.parametrize(
    ("form", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", None)]
)
def test_whole_files_of_any_length_are_never_taken_for_cut(form, subtype):
    for samples in (1, 100, 1152, 5000, 30_001):
        assert read(encoded(form, subtype, 1, samples), 48000).shape == (1, samples)


def test_a_file_that_changes_while_it_is_in_use(wav):
    source = open_audio(wav, target_rate=RATE)
    soundfile.write(wav, pcm(1).T, 16000)
    with pytest.raises(RuntimeError, match="replaced"):
        source.read()
    wav.unlink()
    with pytest.raises(FileNotFoundError, match=r"speech\.wav"):
        source.read()
