import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from models import RATE, make_autoencoder, make_tokenizer, tone
from pages import BITRATES, NAMES, make_page
from PIL import Image

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.audio import open_audio, write_audio
from tokenizer.cli import main
from tokenizer.evaluation.comparison.plots import LIGHT
from tokenizer.evaluation.metrics import quality
from tokenizer.evaluation.report import ReportConfig, build_report
from tokenizer.evaluation.report.pictures import HEIGHT, WIDTH, draw_code_use, spectrogram_db
from tokenizer.training.clips import scan

VOID = {"meta", "link", "img", "source"}


class Page(HTMLParser):
    """What a page consists of; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    folder, found = make_page(root)
    return root, folder, found, Page((folder / "index.html").read_text(encoding="utf-8"))


def test_all_tables_are_there(made):
    _, folder, found, page = made
    titles = [
        "By bitrate",
        "Impact of finetuning",
        "Standardization or not",
        "Comparison to end-to-end training",
    ]
    assert [table["title"] for table in found["tables"]] == titles
    text = "".join(page.text)
    for title in [*titles, "Rate and distortion", "Use of codes"]:
        assert title in text
    labels = [[column["label"] for column in table["columns"]] for table in found["tables"]]
    assert labels[0] == ["original", "continuous", "1.6 kbit/s", "0.4 kbit/s"]
    assert labels[1] == ["original", "1.6 kbit/s", "1.6 kbit/s", "0.4 kbit/s", "0.4 kbit/s"]
    assert labels[2] == ["original", "none", "per channel (the paper's)"]
    assert labels[3] == ["original", "this model", "E2E <b>(1)</b>"]
    assert json.loads((folder / "report.json").read_text()) == found


def test_figures_are_those_of_the_sounds(made):
    root, _, found, _ = made
    tokenizer = load_tokenizer(root / "model")
    row = found["tables"][0]["rows"][0]
    path = next(path for path in (root / "audio").iterdir() if path.name == row["name"])
    original = open_audio(str(path), target_rate=RATE).read()
    codes = tokenizer.encode_codes(path, bitrate=BITRATES[1])
    expected = quality(tokenizer.decode_codes(codes), original, RATE)
    cell = row["cells"][-1]
    assert cell["si_sdr"] == pytest.approx(expected["si_sdr"], abs=1e-3)
    assert cell["mel"] == pytest.approx(expected["mel"], rel=1e-4)
    assert row["cells"][0]["si_sdr"] is None
    # The same codes at one rate, and another decoder.
    tuning = found["tables"][1]["rows"][0]["cells"]
    assert tuning[1]["kbps"] == tuning[2]["kbps"]
    assert tuning[1]["mel"] != tuning[2]["mel"]
    means = found["tables"][0]["means"]
    values = [row["cells"][2]["mel"] for row in found["tables"][0]["rows"]]
    assert means[2]["mel"] == pytest.approx(np.mean(values))
    assert means[0]["mel"] is None


def test_files_are_all_there_and_none_twice(made):
    root, folder, found, page = made
    named = [page.all("audio"), page.all("img"), page.all("source")]
    sources = {str(a.get("src") or a.get("srcset")) for tags in named for a in tags}
    for source in sources:
        assert re.fullmatch(r"(audio|pictures)/[a-z0-9_-]+\.(flac|png|svg)", source), source
        assert (folder / source).stat().st_size > 0
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == sources | {"index.html", "report.json"}
    # report.json itself is counted neither way: its size depends on the sum.
    rest = sum((folder / file).stat().st_size for file in files - {"report.json"})
    assert rest == found["bytes"]
    for clip, name in enumerate(sorted(NAMES)):
        sound = folder / found["tables"][0]["rows"][clip]["cells"][0]["audio"]
        info = soundfile.info(sound)
        assert (info.format, info.subtype, info.samplerate) == ("FLAC", "PCM_16", RATE)
        original, _ = soundfile.read(root / "audio" / name, always_2d=True)
        kept, _ = soundfile.read(sound, always_2d=True)
        np.testing.assert_array_equal(kept, original)
    # Tables share what they have in common.
    first, third = found["tables"][0]["rows"][0], found["tables"][3]["rows"][0]
    assert third["cells"][1]["audio"] == first["cells"][2]["audio"]


def test_names_cannot_break_the_page(made):
    _, folder, found, page = made
    # One script, ours; everything else stays text.
    assert len(page.all("script")) == 1
    assert not page.all("b") or all(a == {} for a in page.all("b"))
    assert not page.all("i")
    text = "".join(page.text)
    for name in NAMES:
        assert name in text
        assert any(name in str(a["alt"]) for a in page.all("img"))
        assert any(name in str(a["aria-label"]) for a in page.all("audio"))
    assert "<i>Title</i> & more" in text
    assert "E2E <b>(1)</b>" in text
    assert sorted(found["clips"]) == sorted(NAMES)
    # Nothing from elsewhere: no address at all.
    assert "//" not in re.sub(r"// One sound.*", "", (folder / "index.html").read_text("utf-8"))


def test_page_can_be_used_without_a_mouse_and_without_eyes(made):
    _, _, _, page = made
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings == ["h1"] + ["h2"] * 6
    tables = page.all("table")
    assert len(page.all("caption")) == len(tables) == 5
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    players = page.all("audio")
    assert len({a["aria-label"] for a in players}) >= len(NAMES) * 4
    assert all("controls" in a and a["preload"] == "none" for a in players)
    assert all(a.get("width") and a.get("height") for a in page.all("img") if "png" in a["src"])
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(identities)) == len(identities)
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in identities
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in identities
    assert page.all("html") == [{"lang": "en"}]
    assert any(a.get("name") == "viewport" for a in page.all("meta"))


def test_spectrograms_show_what_is_there(made, tmp_path):
    del made
    t = np.arange(2 * RATE) / RATE
    tone_1k = np.sin(2 * np.pi * 1000 * t)[None].astype(np.float32)
    tone_1k[:, RATE:] = 0
    picture = spectrogram_db(tone_1k, RATE)
    assert picture.shape == (HEIGHT, WIDTH)
    share = np.log1p(1000 / 700) / np.log1p(RATE / 2 / 700)
    assert picture[:, 100].argmax() == pytest.approx(share * (HEIGHT - 1), abs=2)
    assert picture[:, 100].max() - picture[:, 400].max() > 60
    # Shorter than a window, and longer than pixels.
    for samples in (1, 700, 481, 100_003):
        assert spectrogram_db(np.ones((1, samples), np.float32), RATE).shape == (HEIGHT, WIDTH)
    write_audio(tmp_path / "short.wav", tone(0.01), RATE)
    with Image.open(_report(tmp_path, tmp_path / "page") / "pictures/01-00-original.png") as image:
        assert image.height == HEIGHT
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 5


def _report(audio: Path, out: Path) -> Path:
    model = audio / "model"
    if not model.exists():
        make_tokenizer().save_pretrained(model)
    build_report(model, scan(audio), out, ReportConfig(BITRATES), progress=False)
    return out


def test_code_use_of_unequal_codebooks(tmp_path):
    draw_code_use([[5, 1, 0, 0], [1] * 1000, [0, 0]], tmp_path / "a.svg", LIGHT)
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml")
    draw_code_use([[5, 1, 0, 0], [1] * 1000, [0, 0]], tmp_path / "b.svg", LIGHT)
    assert (tmp_path / "b.svg").read_text() == text


def test_a_report_replaces_only_reports(tmp_path):
    audio, out = tmp_path / "audio", tmp_path / "page"
    audio.mkdir()
    write_audio(audio / "a.wav", tone(0.2), RATE)
    assert (_report(audio, out) / "index.html").exists()
    (out / "old").write_text("")
    assert not (_report(audio, out) / "old").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="precious"):
        _report(audio, precious)
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    assert {path.name for path in tmp_path.iterdir()} == {"audio", "page", "precious"}
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    # Without a comparison, the curves are those of the page.
    assert "Means over the clips of this page." in "".join(page.text)


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    audio, out = tmp_path / "audio", tmp_path / "page"
    audio.mkdir()
    write_audio(audio / "a.wav", tone(0.2), RATE)
    before = (_report(audio, out) / "index.html").read_bytes()

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("tokenizer.evaluation.report.builder.draw_curves", fails)
    with pytest.raises(OSError, match="disk full"):
        _report(audio, out)
    assert (out / "index.html").read_bytes() == before


def test_command(made, tmp_path, capsys, monkeypatch):
    root, *_ = made
    command = ["report", root / "audio", "--model", root / "model", "--out", tmp_path / "page"]
    options = ["--bitrates", 1.6, 0.4, "--focus", 0.4, "--e2e", f"other={root / 'other'}"]
    assert main([str(part) for part in [*command, *options, "--seconds", 0.5]]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"page/index\.html: 0\.\d MB; tables by bitrate, impact of fine", printed)
    sound = next((tmp_path / "page" / "audio").iterdir())
    assert soundfile.info(sound).duration == 0.5
    # A model without codes has a page without them.
    LatentTokenizer.from_autoencoder(make_autoencoder()).save_pretrained(tmp_path / "unfitted")
    options = ["--model", tmp_path / "unfitted", "--seconds", 0.5]
    assert main([str(part) for part in [*command, *options]]) == 0
    assert "tables continuous latents\n" in capsys.readouterr().out
    plain = Page((tmp_path / "page" / "index.html").read_text(encoding="utf-8"))
    assert not {"#curves", "#codes"} & {link["href"] for link in plain.all("a")}
    assert len(plain.all("audio")) == 2 * len(scan(root / "audio"))
    # Bad input is one line.
    bad = {
        "latok compare": ["--compare", tmp_path],
        "positive": ["--seconds", 0],
        "bitrate=100 ": ["--bitrates", 0.1],
    }
    for part, options in bad.items():
        assert main([str(p) for p in [*command, *options]]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("latok: ")
        assert part in error
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main([str(part) for part in command]) == 2
    assert "latent-tokenizer[report]" in capsys.readouterr().err
