import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from libraries import make_library_model
from models import RATE, make_autoencoder, read_row, tone

from tokenizer import LatentTokenizer, cli, load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.cli import main
from tokenizer.evaluation.coding import usual_bitrates


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    for i in range(4):
        write_audio(root / f"{i}.wav", tone(1.0, seed=i), RATE)
    return root


def latok(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_encode_info_decode(model, folder, tmp_path, capsys):
    assert latok("encode", folder / "0.wav", tmp_path / "a.ltk", "--model", model) == 0
    assert (
        latok("encode", folder / "0.wav", tmp_path / "b.ltk", "--bitrate", 0.8, "--model", model)
        == 0
    )
    assert latok("info", tmp_path / "b.ltk") == 0
    assert "2 of [16] entries" in capsys.readouterr().out
    assert latok("info", model) == 0
    assert "continuous, finetuned" in capsys.readouterr().out
    assert latok("decode", tmp_path / "a.ltk", tmp_path / "a.flac", "--model", model) == 0
    assert soundfile.info(tmp_path / "a.flac").frames == RATE
    (tmp_path / "c.wav").write_bytes((folder / "0.wav").read_bytes())
    assert latok("encode", tmp_path / "c.wav", "--model", model) == 0
    assert (tmp_path / "c.ltk").read_bytes() == (tmp_path / "a.ltk").read_bytes()


def test_many_files_are_encoded_and_what_cannot_be_is_named(model, folder, tmp_path, capsys):
    (tmp_path / "music").mkdir()
    for name in ("a.wav", "b.wav", "music/c.wav"):
        (tmp_path / name).write_bytes((folder / "0.wav").read_bytes())
    (tmp_path / "music/broken.mp3").write_bytes(b"no audio")
    m = ("--model", model)
    assert latok("encode", tmp_path / "a.wav", tmp_path / "b.wav", *m) == 0
    assert (tmp_path / "a.ltk").read_bytes() == (tmp_path / "b.ltk").read_bytes()
    assert (tmp_path / "b.wav").read_bytes() == (folder / "0.wav").read_bytes()
    capsys.readouterr()
    assert latok("encode", tmp_path / "music", *m) == 2
    said = capsys.readouterr()
    assert (tmp_path / "music/c.ltk").read_bytes() == (tmp_path / "a.ltk").read_bytes()
    assert "broken.mp3" in said.err
    assert "1 of 2" in said.err
    (tmp_path / "music/c.ltk").unlink()
    assert latok("encode", tmp_path / "music", "--strict", *m) == 2
    assert not (tmp_path / "music/c.ltk").exists()


def test_originals_are_not_overwritten(model, folder, tmp_path, capsys):
    original = (folder / "0.wav").read_bytes()
    a, b, codes = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "a.ltk"
    for path in (a, b):
        path.write_bytes(original)
    m = ("--model", model)
    assert latok("encode", a, *m) == 0
    # Codes are made again at another rate, and audio from them where nothing is.
    size = codes.stat().st_size
    assert latok("encode", a, "--codebooks", 1, *m) == 0
    assert codes.stat().st_size < size
    nameless = tmp_path / "clip"
    nameless.write_bytes(original)
    exported = tmp_path / "model"
    load_tokenizer(model).save_pretrained(exported)
    weights = (exported / "model.safetensors").read_bytes()
    capsys.readouterr()
    for part, arguments in {
        "a.wav is there already": ("decode", codes, *m),
        "c.MP3 has a suffix of audio": ("encode", a, tmp_path / "c.MP3", *m),
        "d.ltk has the suffix of codes": ("decode", codes, tmp_path / "d.ltk", *m),
        "a.ltk is the file to read": ("decode", codes, codes, *m),
        "clip is the file to read": ("encode", nameless, nameless, *m),
        "holds": ("demo", a, "--out", tmp_path, *m),
        "is the model, which would be rounded": ("export", exported, exported),
    }.items():
        assert latok(*arguments) == 2, part
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
        assert all(path.read_bytes() == original for path in (a, b, nameless))
    assert (exported / "model.safetensors").read_bytes() == weights
    assert latok("decode", codes, b, *m) == 0  # who names a file may replace it
    assert b.read_bytes() != original
    a.unlink()
    assert latok("decode", codes, *m) == 0
    assert soundfile.info(a).frames == RATE


def test_beam_width_of_the_search(beam_tokenizer, tokenizer, model, folder, tmp_path, capsys):
    beam_tokenizer.save_pretrained(tmp_path / "beam")
    codes = {}
    for name, *options in (("own",), ("greedy", "--beam-width", 1), ("same", "--beam-width", 3)):
        out = tmp_path / f"{name}.ltk"
        assert latok("encode", folder / "0.wav", out, "--model", tmp_path / "beam", *options) == 0
        codes[name] = read_row(out, beam_tokenizer)["codes"]
    np.testing.assert_array_equal(codes["own"], codes["same"])
    assert (codes["greedy"] != codes["own"]).any()
    # The two models differ in nothing but the search.
    greedy = tokenizer.encode_codes({"path": str(folder / "0.wav"), "bytes": None})
    np.testing.assert_array_equal(codes["greedy"], greedy["codes"])

    capsys.readouterr()
    out = tmp_path / "none.ltk"
    assert latok("encode", folder / "0.wav", out, "--model", model, "--beam-width", 0) == 2
    assert "beam_width is 0; it must be at least 1" in capsys.readouterr().err
    LatentTokenizer.from_autoencoder(make_autoencoder()).save_pretrained(tmp_path / "no_codes")
    arguments = ("--model", tmp_path / "no_codes", "--beam-width", 1)
    assert latok("encode", folder / "0.wav", out, *arguments) == 2
    assert "has no beam" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_module_and_console_script_run(model):
    done = subprocess.run(
        [sys.executable, "-m", "tokenizer", "info", model],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "4 of [16] entries" in done.stdout


def test_evaluate(model, folder, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert latok("evaluate", folder, "--bitrates", 1.6, 0.4, "--json", out, "--model", model) == 0
    table = capsys.readouterr().out
    assert "continuous" in table
    result = json.loads(out.read_text())["conditions"]
    assert list(result) == ["continuous", "4 codebooks", "1 codebooks"]
    for found in result.values():
        assert len(found["per_clip"]) == 4
        values = [clip["si_sdr"] for clip in found["per_clip"]]
        assert found["mean"]["si_sdr"] == pytest.approx(np.mean(values))
    assert result["continuous"]["mean"]["si_sdr"] > result["1 codebooks"]["mean"]["si_sdr"]


@pytest.mark.parametrize(("usual", "kept"), [((3000, 900, 399), [1600, 800]), ((399, 100), [400])])
def test_rates_that_nobody_named_are_those_of_the_model(
    model, tokenizer, folder, tmp_path, monkeypatch, capsys, usual, kept
):
    monkeypatch.setattr("tokenizer.evaluation.coding.BITRATES", usual)
    assert usual_bitrates(tokenizer) == pytest.approx(kept)
    out, m = tmp_path / "result.json", ("--model", model)
    assert latok("evaluate", folder / "0.wav", "--json", out, *m) == 0
    names = [f"{rate // 400} codebooks" for rate in kept]
    assert list(json.loads(out.read_text())["conditions"]) == ["continuous", *names]
    assert latok("report", folder / "0.wav", "--out", tmp_path / "page", *m) == 0
    tables = json.loads((tmp_path / "page/report.json").read_text())["tables"]
    assert len(tables[0]["columns"]) == 2 + len(kept)
    capsys.readouterr()
    assert latok("evaluate", folder / "0.wav", "--bitrates", 0.3, *m) == 2
    assert "bitrate=300" in capsys.readouterr().err


def test_demo(model, folder, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenizer.evaluation.coding.BITRATES", (1600, 400, 399))
        assert latok("demo", folder / "1.wav", "--out", tmp_path / "demo", "--model", model) == 0
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert names == {
        "original.wav",
        "continuous.wav",
        "0.4kbps.wav",
        "0.4kbps.ltk",
        "1.6kbps.wav",
        "1.6kbps.ltk",
        "spectrograms.png",
    }
    assert "| 0.4kbps" in capsys.readouterr().out
    assert (tmp_path / "demo" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")
    for wave in (tmp_path / "demo").glob("*.wav"):
        assert soundfile.info(wave).frames == RATE


LOOP = [
    "--steps",
    4,
    "--batch-size",
    2,
    "--crop-seconds",
    0.25,
    "--num-workers",
    0,
    "--warmup-steps",
    1,
]


@pytest.mark.slow
def test_three_stages(folder, tmp_path, capsys):
    sizes = ["--sampling-rate", RATE, "--hop-length", 80, "--latent-dim", 8, "--encoder-width", 16]
    sizes += ["--decoder-width", 16, "--encoder-depth", 1, "--decoder-depth", 1]
    command = ["train", folder, "--out", tmp_path / "1", "--preset", "tiny", *sizes, *LOOP]
    assert latok(*command, "--held-out", 1) == 0
    raw = LatentTokenizer.from_pretrained(tmp_path / "1" / "model")
    assert raw.autoencoder.to_config()["encoder_depth"] == 1
    before = {k: v.clone() for k, v in raw.state_dict().items()}
    # Started again, a finished run does nothing and gives the same model.
    assert latok(*command, "--held-out", 1) == 0
    again = LatentTokenizer.from_pretrained(tmp_path / "1" / "model").state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())
    fit = ["fit", tmp_path / "1" / "model", folder, "--out", tmp_path / "2", "--codebooks", 3]
    assert latok(*fit, "--codebook-size", 8, "--segment-seconds", 0.5, "--beam-width", 2) == 0
    assert "| 3 |" in capsys.readouterr().out
    finetune = ["finetune", tmp_path / "2" / "model", folder, "--out", tmp_path / "3", *LOOP]
    assert latok(*finetune, "--held-out", 1) == 0
    tokenizer = load_tokenizer(str(tmp_path / "3" / "model"))
    assert tokenizer.codes_decoder == "finetuned"
    assert (
        tokenizer.codes_fingerprint
        == load_tokenizer(str(tmp_path / "2" / "model")).codes_fingerprint
    )
    assert tokenizer.decode_codes(tokenizer.encode_codes(folder / "0.wav")).shape == (1, RATE)
    # The log says what the losses were, for every stage with gradients.
    assert "train/mel" in (tmp_path / "3" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "name", ["dac", *(pytest.param(n, marks=pytest.mark.slow) for n in ("encodec", "oobleck"))]
)
def test_other_libraries_models_become_tokenizers(folder, tmp_path, name):
    make_library_model(name).save_pretrained(tmp_path / "library")
    command = ["fit", tmp_path / "library", folder, "--out", tmp_path / "fit", "--codebooks", 3]
    command += ["--codebook-size", 8, "--segment-seconds", 0.5, "--max-points", 2000]
    assert latok(*command, "--standardization", "channel", "--max-frames", 2000) == 0
    model = str(tmp_path / "fit" / "model")
    tokenizer = load_tokenizer(model)
    assert tokenizer.autoencoder.kind == name
    for channels in (1, 2, 3):
        wave = tone(0.3, channels=channels)
        row = tokenizer.encode_codes(wave, sampling_rate=RATE)
        assert tokenizer.decode_codes(row).shape == wave.shape
        exact = tokenizer.decode_latents(tokenizer.encode_latents(wave, sampling_rate=RATE))
        assert exact.shape == wave.shape
    audio = folder / "0.wav"
    assert latok("encode", audio, tmp_path / "a.ltk", "--model", model) == 0
    assert latok("decode", tmp_path / "a.ltk", tmp_path / "a.wav", "--model", model) == 0
    assert soundfile.info(tmp_path / "a.wav").frames == RATE


def bad_inputs(tmp_path, model) -> dict[str, tuple[list, str]]:
    """Command lines that must fail, and what the one line must say."""
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "text.ltk").write_text("these are no codes")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    nan = np.full((1, 800), np.nan, np.float32)
    soundfile.write(tmp_path / "nan.wav", nan.T, RATE, subtype="FLOAT")
    write_audio(tmp_path / "good.wav", tone(0.1), RATE)
    LatentTokenizer.from_autoencoder(make_autoencoder()).save_pretrained(tmp_path / "unfitted")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out.ltk"
    m = ["--model", model]
    good = tmp_path / "good.wav"
    return {
        "missing": (["encode", tmp_path / "nowhere.wav", out, *m], "nowhere.wav"),
        "empty": (["encode", tmp_path / "empty.wav", out, *m], "empty.wav"),
        "no samples": (["encode", tmp_path / "none.wav", out, *m], "none.wav"),
        "text": (["encode", tmp_path / "text.wav", out, *m], "text.wav"),
        "nan": (["encode", tmp_path / "nan.wav", out, *m], "nan.wav"),
        "folder": (["encode", tmp_path / "folder", out, *m], "folder"),
        "unfitted": (["encode", good, out, "--model", tmp_path / "unfitted"], "latok fit"),
        "rate": (["encode", good, out, "--bitrate", 0.001, *m], "bitrate=1 "),
        "codebooks": (["encode", good, out, "--codebooks", 99, *m], "99"),
        "no model": (["encode", good, out, "--model", tmp_path / "nomodel"], "nomodel"),
        "no folder": (["encode", good, tmp_path / "no" / "out.ltk", *m], "no"),
        "no codes": (["decode", tmp_path / "text.ltk", tmp_path / "out.wav", *m], "text.ltk"),
        "missing codes": (["decode", tmp_path / "no.ltk", tmp_path / "out.wav", *m], "no.ltk"),
        "suffix": (["decode", tmp_path / "text.ltk", tmp_path / "out.xyz", *m], ""),
        "info": (["info", tmp_path / "no.ltk"], "no.ltk"),
        "no audio": (["evaluate", tmp_path / "folder", *m], "folder"),
        "train nowhere": (
            ["train", tmp_path / "nowhere", "--out", tmp_path / "out", "--steps", 1],
            "nowhere",
        ),
        "fit nowhere": (["fit", model, tmp_path / "nowhere", "--out", tmp_path / "out"], "nowhere"),
        "fit what": (["fit", tmp_path / "folder", tmp_path, "--out", tmp_path / "out"], "folder"),
    }


def test_bad_input_is_one_line_and_exit_2(tmp_path, model, capsys):
    cases = bad_inputs(tmp_path, model)
    before = sorted(tmp_path.rglob("*"))
    for name, (arguments, part) in cases.items():
        capsys.readouterr()
        assert latok(*arguments) == 2, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("latok: "), name
        assert part in lines[-1], name
        assert sorted(tmp_path.rglob("*")) == before, name


def test_numbers_out_of_range_are_one_line_and_exit_2(model, tmp_path, capsys):
    out = tmp_path / "out.ltk"
    live = ("encode", "-", out, "--gain", 0.1, "--model", model, "--chunk-frames")
    for arguments in [(*live, frames) for frames in (0, -1)] + [
        ("app", "--model", model, "--port", port) for port in (99999, 65536, 0, -1)
    ]:
        assert latok(*arguments) == 2
        # The model may have been loaded with a bar before.
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("latok: ")
        assert f"{arguments[-2].removeprefix('--')} {arguments[-1]}" in line.lower()
    assert not out.exists()


def test_usage_errors_exit_2():
    for arguments in ([], ["bogus"], ["encode"], ["decode", "x", "--decoder", "best"]):
        with pytest.raises(SystemExit) as stopped:
            latok(*arguments)
        assert stopped.value.code == 2


def test_a_full_disk_in_tensorboards_thread_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda found: told.append(found.exc_type))

    class Board(threading.Thread):
        __module__ = "tensorboard.summary.writer.event_file_writer"

        def __init__(self, error):
            super().__init__()
            self.error = error

        def run(self):
            raise self.error

    def fail(error):
        thread = Board(error)
        thread.start()
        thread.join()

    with cli.errors_told_once():
        fail(OSError(28, "No space left on device"))
        fail(KeyError("a bug"))
    fail(OSError(28, "No space left on device"))
    assert told == [KeyError, OSError]


def test_errors_of_other_threads_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda found: told.append(found.exc_type))
    with cli.errors_told_once():
        thread = threading.Thread(target=lambda: (_ for _ in ()).throw(OSError("another")))
        thread.start()
        thread.join()
    assert told == [OSError]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["--help"], ["info", "tests/data/golden/0.1/static.ltk"]])
def test_help_and_information_do_not_import_torch(command):
    program = (
        "import sys; from tokenizer.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=Path(__file__).parents[3],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()"
