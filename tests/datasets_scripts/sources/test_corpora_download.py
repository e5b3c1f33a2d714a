"""Downloads, from a server on this machine that breaks off, forgets and lies; and archives."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpora_trees import TRACKS, clips, esc50, librispeech, prepared, write_tree

from datasets_scripts.corpora import CORPORA
from datasets_scripts.sources.archives import is_unpacking, unpack
from datasets_scripts.sources.corpus import Download
from datasets_scripts.sources.download import fetch, fetch_all

CONTENT = os.urandom(3_000_000)


@dataclass
class Web:
    """A server of a few files.

    Attributes:
        address: Its address.
        files: Content by name.
        breaks: Bytes after which each of the next answers breaks off.
        ranges: Whether it knows ranges.
        tag: The version of all files.
        status: If not 0, all that it answers.
        asked: Name and range of each request so far.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: str | None = '"1"'
    status: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def download(self, name: str, **fields) -> Download:
        return Download(f"{self.address}/{name}", name, **fields)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, web: Web, *args):
        self.web = web
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        web, name = self.web, self.path[1:]
        asked = self.headers.get("Range")
        web.asked.append((name, asked))
        if web.status or name not in web.files:
            self.send_error(web.status or 404)
            return
        content, start = web.files[name], 0
        if asked and web.ranges and self.headers.get("If-Range") == web.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        if web.tag:
            self.send_header("ETag", web.tag)
        self.end_headers()
        end = start + web.breaks.pop(0) if web.breaks else len(content)
        self.wfile.write(content[start:end])


@pytest.fixture
def web():
    web = Web(files={"a.bin": CONTENT})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web))
    web.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    server.shutdown()
    server.server_close()
    thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def digest(content: bytes, algorithm: str = "md5") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def packed(folder: Path, name: str, mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        tar.add(folder / name, name)
    return file.getvalue()


class TestFetch:
    @pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
    def test_whole(self, web, algorithm, tmp_path):
        download = web.download("a.bin", checksum=digest(CONTENT, algorithm))
        assert fetch(download, tmp_path / "x") == tmp_path / "x" / "a.bin"
        assert names(tmp_path / "x") == ["a.bin"]
        assert (tmp_path / "x/a.bin").read_bytes() == CONTENT
        fetch(download, tmp_path / "x")
        assert len(web.asked) == 1

    def test_goes_on_where_it_broke_off(self, web, tmp_path):
        web.breaks = [1_000_000, 500_000]
        fetch(web.download("a.bin"), tmp_path, pause=0)
        assert (tmp_path / "a.bin").read_bytes() == CONTENT
        assert names(tmp_path) == ["a.bin"]
        assert [asked for _, asked in web.asked] == [None, "bytes=1000000-", "bytes=1500000-"]

    def test_many_breaks_are_no_failure_while_it_goes_on(self, web, tmp_path):
        web.breaks = 9 * [100_000]
        fetch(web.download("a.bin"), tmp_path, pause=0)
        assert (tmp_path / "a.bin").read_bytes() == CONTENT

    def test_a_later_call_goes_on_too(self, web, tmp_path):
        web.breaks = [1_000_000, *(5 * [0])]
        with pytest.raises(RuntimeError, match="1,000,000 of 3,000,000"):
            fetch(web.download("a.bin"), tmp_path, pause=0)
        assert "a.bin" not in names(tmp_path)
        assert (tmp_path / ".a.bin.partial").stat().st_size == 1_000_000
        web.breaks = []
        web.asked.clear()
        fetch(web.download("a.bin"), tmp_path)
        assert web.asked == [("a.bin", "bytes=1000000-")]
        assert (tmp_path / "a.bin").read_bytes() == CONTENT

    @pytest.mark.parametrize("change", ["new version", "no ranges", "no tag", "weak tag"])
    def test_another_version_is_never_appended(self, web, change, tmp_path):
        web.tag = {"no tag": None, "weak tag": 'W/"1"'}.get(change, '"1"')
        web.breaks = [1_000_000, *(5 * [0])]
        with pytest.raises(RuntimeError):
            fetch(web.download("a.bin"), tmp_path, pause=0)
        web.breaks = []
        web.files["a.bin"] = other = os.urandom(2_000_000)
        web.tag = '"2"' if change == "new version" else web.tag
        web.ranges = change != "no ranges"
        fetch(web.download("a.bin"), tmp_path)
        assert (tmp_path / "a.bin").read_bytes() == other

    def test_all_had_arrived(self, web, tmp_path):
        # Killed between the last byte and the renaming.
        (tmp_path / ".a.bin.partial").write_bytes(CONTENT)
        (tmp_path / ".a.bin.partial.json").write_text('{"version": "\\"1\\""}')
        fetch(web.download("a.bin", checksum=digest(CONTENT)), tmp_path)
        assert names(tmp_path) == ["a.bin"]
        # And when more is there than the server has.
        (tmp_path / "a.bin").unlink()
        (tmp_path / ".a.bin.partial").write_bytes(CONTENT + b"x")
        (tmp_path / ".a.bin.partial.json").write_text('{"version": "\\"1\\""}')
        fetch(web.download("a.bin", checksum=digest(CONTENT)), tmp_path, pause=0)
        assert (tmp_path / "a.bin").read_bytes() == CONTENT

    def test_wrong_checksums(self, web, tmp_path):
        download = web.download("a.bin", checksum=digest(b"something else"))
        with pytest.raises(RuntimeError, match=rf"a\.bin .*{hashlib.md5(CONTENT).hexdigest()}"):
            fetch(download, tmp_path)
        assert names(tmp_path) == []
        # Also of a file that its user has put there.
        (tmp_path / "a.bin").write_bytes(b"mine")
        with pytest.raises(RuntimeError, match=r"a\.bin"):
            fetch(download, tmp_path)
        assert names(tmp_path) == []

    def test_no_such_file(self, web, tmp_path):
        with pytest.raises(RuntimeError, match=rf"404.*{tmp_path / 'b.bin'}"):
            fetch(web.download("b.bin"), tmp_path)
        assert len(web.asked) == 1

    def test_a_busy_server_is_asked_again(self, web, tmp_path):
        web.status = 503
        with pytest.raises(RuntimeError, match="503"):
            fetch(web.download("a.bin"), tmp_path, pause=0)
        assert len(web.asked) == 5

    def test_nobody_there(self, tmp_path):
        download = Download("http://127.0.0.1:9/a.bin", "a.bin")
        with pytest.raises(RuntimeError, match=r"a.bin.*refused"):
            fetch(download, tmp_path, pause=0)
        with pytest.raises(ValueError, match="file:///etc/passwd"):
            fetch(Download("file:///etc/passwd", "a.bin"), tmp_path)


class TestUnpack:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_tar(self, mode, tmp_path):
        write_tree(tmp_path / "from", {"x/a.txt": "a", "x/y/b.txt": "b"})
        archive = tmp_path / ("a.tar" + mode[1:].replace(":", "."))
        archive.write_bytes(packed(tmp_path / "from", "x", mode))
        # What is there from another archive stays.
        write_tree(tmp_path / "to", {"x/y/c.txt": "c", "x/a.txt": "old"})
        unpack(archive, tmp_path / "to")
        assert names(tmp_path / "to") == ["x"]
        assert names(tmp_path / "to/x/y") == ["b.txt", "c.txt"]
        assert (tmp_path / "to/x/a.txt").read_text() == "a"

    def test_zip(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(zipped({"x/": b"", "x/a.txt": b"a", "b.txt": b"b"}))
        unpack(tmp_path / "a.zip", tmp_path / "to")
        assert names(tmp_path / "to") == ["b.txt", "x"]
        assert not is_unpacking(tmp_path / "to")

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    @pytest.mark.parametrize("name", ["../out.txt", "/tmp/latok-out.txt", "a/../../out.txt"])
    def test_members_outside_are_refused(self, kind, name, tmp_path):
        archive = tmp_path / f"in/a.{kind}"
        archive.parent.mkdir()
        if kind == "zip":
            archive.write_bytes(zipped({"good.txt": b"", name: b"evil"}))
        else:
            with tarfile.open(archive, "w") as tar:
                info = tarfile.TarInfo(name)
                tar.addfile(info, io.BytesIO())
        if kind == "tar" and name.startswith("/"):
            unpack(archive, tmp_path / "to")  # The filter "data" makes it a relative name.
            assert (tmp_path / "to" / name[1:]).exists()
        else:
            with pytest.raises(ValueError, match=archive.name):
                unpack(archive, tmp_path / "to")
            assert names(tmp_path / "to") == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "to"]
        assert not Path("/tmp/latok-out.txt").exists()

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_links_outside_are_refused(self, kind, tmp_path):
        archive = tmp_path / f"a.{kind}"
        if kind == "zip":
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            with zipfile.ZipFile(archive, "w") as members:
                members.writestr(link, "/etc")
        else:
            with tarfile.open(archive, "w") as tar:
                info = tarfile.TarInfo("link")
                info.type, info.linkname = tarfile.SYMTYPE, "../../etc"
                tar.addfile(info)
        with pytest.raises(ValueError, match="link"):
            unpack(archive, tmp_path / "to")
        assert names(tmp_path / "to") == []

    @pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar", "zip"])
    def test_damaged_archives(self, kind, tmp_path):
        write_tree(tmp_path / "from", {"x/a.txt": "a" * 100, "x/b.txt": "b" * 100_000})
        mode = "w" + kind[3:].replace(".", ":")
        whole = (
            zipped({"x/a.txt": b"a", "x/b.txt": os.urandom(10_000)})
            if kind == "zip"
            else packed(tmp_path / "from", "x", mode)
        )
        archive = tmp_path / f"a.{kind}"
        broken = bytearray(whole)
        broken[len(broken) // 2] ^= 0xFF
        for content in (b"", b"<html>Not found</html>" * 100, whole[: len(whole) // 2], broken):
            if kind == "tar" and content is broken:
                continue  # Plain tar has no checksum of contents.
            archive.write_bytes(content)
            with pytest.raises(ValueError, match=archive.name):
                unpack(archive, tmp_path / "to")
            assert names(tmp_path / "to") == []

    def test_more_than_the_disk_holds(self, tmp_path, monkeypatch):
        (tmp_path / "a.zip").write_bytes(zipped({"b.txt": bytes(1000)}))
        usage = type("Usage", (), {"free": 999})
        monkeypatch.setattr("datasets_scripts.sources.archives.shutil.disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"a\.zip .*1,000 .*999"):
            unpack(tmp_path / "a.zip", tmp_path / "to")


def split_zip(members: dict[str, bytes], size: int) -> list[bytes]:
    """What ``zip -s`` makes: parts, with places counted from the beginning of each."""
    whole = zipped(members)
    parts = [b"PK\x07\x08"]  # The mark of a split archive.
    for number in range(0, len(whole), size):
        parts.append(whole[number : number + size])
    joined = b"".join(parts)
    parts = [joined[start : start + size] for start in range(0, len(joined), size)]
    starts = [number * size for number in range(len(parts))]
    data = bytearray(joined)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        directory = archive.start_dir + 4
        offsets = [info.header_offset + 4 for info in archive.infolist()]
        names = [info.filename for info in archive.infolist()]
    place = directory
    for name, offset in zip(names, offsets, strict=True):
        disk = offset // size
        data[place + 34 : place + 36] = disk.to_bytes(2, "little")
        data[place + 42 : place + 46] = (offset - starts[disk]).to_bytes(4, "little")
        place += 46 + len(name)
    last = directory // size
    data[place + 4 : place + 6] = (len(parts) - 1).to_bytes(2, "little")
    data[place + 6 : place + 8] = last.to_bytes(2, "little")
    data[place + 16 : place + 20] = (directory - starts[last]).to_bytes(4, "little")
    # The directory must not be cut: the last part is as long as it needs to be.
    return [bytes(data[start : start + size]) for start in starts[:last]] + [
        bytes(data[starts[last] :])
    ]


class TestSplitZip:
    members = {f"x/{number}.bin": os.urandom(700 + number) for number in range(9)}  # noqa: RUF012

    def write(self, folder: Path) -> Path:
        parts = split_zip(self.members, 2000)
        assert len(parts) == 4
        for number, part in enumerate(parts[:-1], start=1):
            (folder / f"a.z{number:02d}").write_bytes(part)
        (folder / "a.zip").write_bytes(parts[-1])
        return folder / "a.zip"

    def test_all_parts(self, tmp_path):
        unpack(self.write(tmp_path), tmp_path / "to")
        found = {f"x/{p.name}": p.read_bytes() for p in (tmp_path / "to/x").iterdir()}
        assert found == self.members

    def test_a_part_is_not_there(self, tmp_path):
        archive = self.write(tmp_path)
        (tmp_path / "a.z02").unlink()
        with pytest.raises(FileNotFoundError, match=r"a\.zip .*a\.z02"):
            unpack(archive, tmp_path / "to")
        (tmp_path / "a.z03").unlink()
        with pytest.raises(ValueError, match=r"a\.zip"):
            unpack(archive, tmp_path / "to")

    def test_a_part_is_damaged(self, tmp_path):
        archive = self.write(tmp_path)
        (tmp_path / "a.z02").write_bytes(os.urandom(2000))
        with pytest.raises(ValueError, match=r"a\.zip"):
            unpack(archive, tmp_path / "to")

    def test_parts_are_fetched_once_and_deleted(self, web, tmp_path):
        archive = self.write(tmp_path)
        files = {path.name: path.read_bytes() for path in sorted(archive.parent.glob("a.z*"))}
        web.files |= files
        for _ in range(2):
            fetch_all([web.download(name) for name in files], tmp_path / "root")
        assert len(web.asked) == len(files) == 4
        assert names(tmp_path / "root") == [".downloads", "x"]


class TestCorpora:
    def use(self, monkeypatch, web, name):
        """The corpus with this machine's server in place of its own."""
        module = CORPORA[name]
        downloads = tuple(
            replace(one, url=f"{web.address}/{one.name}", checksum=digest(web.files[one.name]))
            for one in module.INFO.downloads
            if one.name in web.files
        )
        monkeypatch.setattr(module, "INFO", replace(module.INFO, downloads=downloads))
        return module

    def test_librispeech(self, web, monkeypatch, tmp_path):
        librispeech(tmp_path / "a")
        web.files["dev-clean.tar.gz"] = packed(tmp_path / "a", "LibriSpeech")
        write_tree(tmp_path / "b", {"LibriSpeech/test-clean/1/2/1-2.trans.txt": "1-2-0000 A\n"})
        web.files["test-clean.tar.gz"] = packed(tmp_path / "b", "LibriSpeech")
        corpus = self.use(monkeypatch, web, "librispeech")
        root = tmp_path / "root"
        assert corpus.download(root, ["dev-clean"]) == root
        assert [name for name, _ in web.asked] == ["dev-clean.tar.gz"]
        assert names(root) == [".downloads", "LibriSpeech"]
        assert len(clips(prepared("librispeech", root, "dev-clean"))) == 3
        # Only what is missing is fetched, and goes into the same folder.
        corpus.download(root, ["dev-clean", "test-clean"])
        assert [name for name, _ in web.asked][1:] == ["test-clean.tar.gz"]
        assert corpus.describe(root).splits == ("dev-clean", "test-clean")
        corpus.download(root, ["dev-clean", "test-clean"])
        assert len(web.asked) == 2
        with pytest.raises(ValueError, match=r"'dev'.* dev-clean"):
            corpus.download(root, ["dev"])

    def test_an_archive_that_is_there_is_used(self, web, monkeypatch, tmp_path):
        esc50(tmp_path / "a" / "ESC-50-master")
        web.files["ESC-50-master.zip"] = b""
        corpus = self.use(monkeypatch, web, "esc50")
        content = zipped(
            {
                path.relative_to(tmp_path / "a").as_posix(): path.read_bytes()
                for path in (tmp_path / "a").rglob("*.*")
            }
        )
        download = replace(corpus.INFO.downloads[0], checksum=None)
        monkeypatch.setattr(corpus, "INFO", replace(corpus.INFO, downloads=(download,)))
        root = tmp_path / "root"
        root.mkdir()
        (root / "ESC-50-master.zip").write_bytes(content)
        corpus.download(root)
        assert web.asked == []
        assert len(clips(prepared("esc50", root, "fold1"))) == 1

    def test_killed_while_it_unpacked(self, web, monkeypatch, tmp_path):
        librispeech(tmp_path / "a")
        web.files["dev-clean.tar.gz"] = packed(tmp_path / "a", "LibriSpeech")
        corpus = self.use(monkeypatch, web, "librispeech")
        root = tmp_path / "root"
        # Half of the files had been moved into place: the folder of the split is there.
        librispeech(root)
        gone = root / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac"
        gone.unlink()
        (root / ".unpacking-dev-clean.tar.gz").mkdir()
        corpus.download(root, ["dev-clean"])
        assert gone.exists()
        assert names(root) == [".downloads", "LibriSpeech"]

    def test_fma_fetches_the_subset(self, web, monkeypatch, tmp_path):
        web.files |= {
            "fma_metadata.zip": zipped({"fma_metadata/tracks.csv": TRACKS.encode()}),
            "fma_small.zip": zipped({"fma_small/000/000002.mp3": b"x"}),
            "fma_medium.zip": zipped({"fma_medium/000/000002.mp3": b"x"}),
        }
        corpus = self.use(monkeypatch, web, "fma")
        corpus.download(tmp_path, subset="medium")
        assert [name for name, _ in web.asked] == ["fma_metadata.zip", "fma_medium.zip"]
        corpus.download(tmp_path)
        assert [name for name, _ in web.asked][2:] == ["fma_small.zip"]
        with pytest.raises(ValueError, match="subset='big'"):
            corpus.download(tmp_path, subset="big")

    def test_captions_only(self, web, monkeypatch, tmp_path):
        web.files["val.csv"] = b"audiocap_id,youtube_id,start_time,caption\n1,abc,0,Rain\n"
        corpus = self.use(monkeypatch, web, "audiocaps")
        corpus.download(tmp_path, ["val"])
        assert names(tmp_path) == ["val.csv"]
        assert corpus.describe(tmp_path).splits == ("val",)

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=str(tmp_path / "file")):
            CORPORA["esc50"].download(tmp_path / "file")

    @pytest.mark.parametrize("name", ["audiofolder", "webdataset_shards"])
    def test_what_has_no_address(self, name, tmp_path):
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "x")):
            CORPORA[name].download(tmp_path / "x")
