"""Fetching of corpora from their official addresses: resumed where it broke off, and checked."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.sources.archives import is_unpacking, unpack, zip_parts
from datasets_scripts.sources.corpus import CorpusInfo, Download
from tokenizer.errors import InputError, StateError
from tokenizer.saving import publish, write_json

_BLOCK = 2**20
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 5
# Which archives have been unpacked, so that they may be deleted.
_DONE = ".downloads"
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


_NETWORK = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)


class _BrokenOff(Exception):
    """The connection broke off; going on from there may help."""


def fetch(
    download: Download, folder: Path, *, progress: bool = False, pause: float | int = 2.0
) -> Path:
    """Fetches a file to a folder, unless it is there already, and checks it.

    What has arrived is kept under a hidden name if the connection breaks off, and the next call
    goes on from there, provided that the server has the same version of the file still. ``pause``
    are the seconds before the second attempt, twice as many before each that follows.

    Raises:
        RuntimeError: If it cannot be fetched, or its checksum is wrong; in the latter case it is
            deleted.
    """
    target = folder / download.name
    if target.is_file():
        _verify(target, download)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{download.name}.partial"
    failures = 0  # since something arrived
    while True:
        before = _size(partial)
        try:
            _receive(download, partial, progress)
            break
        except _BrokenOff as error:
            failures = 1 if _size(partial) > before else failures + 1
            if failures == _ATTEMPTS:
                raise StateError(
                    f"{download.url} cannot be fetched: {error}. What has arrived is kept: run it"
                    f" again to go on, or save it by hand as {target}."
                ) from error
        time.sleep(pause * 2 ** (failures - 1))
    _verify(partial, download)
    publish(partial, target)
    _version_file(partial).unlink(missing_ok=True)
    return target


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _receive(download: Download, partial: Path, progress: bool) -> None:
    """Appends to ``partial`` until the server has sent all."""
    have = _size(partial)
    version = _read_version(partial) if have else None
    # Without a version, what was begun might be of another file: then begin again.
    have = have if version else 0
    headers = {"User-Agent": "latent-tokenizer", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    if not download.url.startswith(("https://", "http://")):
        raise InputError(f"{download.url} is not an address of the web.")
    request = urllib.request.Request(download.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != 206:
                have = 0
            _write(response, partial, have, download.name, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and _complete_size(error) == have:
                return  # All had arrived, and only the checks were left to do.
            if error.code == 416:
                partial.unlink(missing_ok=True)
            if error.code in (416, 429) or error.code >= 500:
                raise _BrokenOff(f"HTTP status {error.code}") from None
            raise StateError(
                f"{download.url}: the server says {error.code} {error.reason}. If it has moved,"
                f" fetch it by hand and save it as {partial.with_name(download.name)}."
            ) from None
    except _NETWORK as error:
        raise _BrokenOff(str(error) or type(error).__name__) from error


def _write(response: Any, partial: Path, have: int, name: str, progress: bool) -> None:
    length = response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    # Weak tags ("W/...") may not be used to resume.
    tag = response.headers.get("ETag") or ""
    version = response.headers.get("Last-Modified") if tag[:2] in ("", "W/") else tag
    if not have:
        partial.unlink(missing_ok=True)  # Before the new version is noted: it is of an older one.
    _version_file(partial).write_text(json.dumps({"version": version}))
    bar = tqdm(
        desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=not progress
    )
    with partial.open("r+b" if have else "wb") as file, bar:
        file.seek(have)
        while block := response.read(_BLOCK):
            file.write(block)
            bar.update(len(block))
        if total is not None and file.tell() < total:
            raise _BrokenOff(f"{file.tell():,} of {total:,} bytes arrived")


def _read_version(partial: Path) -> str | None:
    try:
        return json.loads(_version_file(partial).read_text())["version"]
    except (OSError, ValueError, KeyError):
        return None


def _complete_size(error: urllib.error.HTTPError) -> int | None:
    size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _verify(file: Path, download: Download) -> None:
    if download.checksum is None:
        return
    algorithm, _, expected = download.checksum.partition(":")
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, algorithm).hexdigest()
    if actual != expected.lower():
        file.unlink()
        _version_file(file).unlink(missing_ok=True)
        raise StateError(
            f"{download.name} has the {algorithm} checksum {actual}, not {expected} as published:"
            f" it is deleted. Fetch it again; if that does not help, {download.url} has another"
            " version."
        )


def fetch_all(
    downloads: Iterable[Download], root: Path, *, progress: bool = False, pause: float | int = 2.0
) -> None:
    """Fetches files and unpacks those that are archives, which are deleted afterwards.

    Archives that someone has put into ``root`` are checked and used instead of fetched. Everything
    that was done is skipped by another call. Errors are those of `fetch` and `unpack`.
    """
    downloads = [one for one in downloads if not _done(root, one).exists()]
    for download in downloads:
        fetch(download, root, progress=progress, pause=pause)
    for download in downloads:
        if not download.name.endswith(_ARCHIVES):
            continue
        archive = root / download.name
        unpack(archive, root, progress=progress)
        parts = zip_parts(archive) if archive.suffix == ".zip" else [archive]
        done = _done(root, download)
        done.parent.mkdir(exist_ok=True)
        write_json(done, {"url": download.url, "checksum": download.checksum})
        for part in parts:
            part.unlink()


def _done(root: Path, download: Download) -> Path:
    """The marker that an archive is unpacked; the parts of a split one share the last one's."""
    name = Path(download.name)
    if name.suffix[:2] == ".z" and name.suffix[2:].isdigit():
        name = name.with_suffix(".zip")
    return root / _DONE / f"{name}.json"


def locate_or_download(
    info: CorpusInfo,
    root: str | Path,
    splits: Sequence[str] | None,
    describe: Callable[[Path], CorpusInfo],
    *,
    progress: bool = False,
) -> Path:
    """What most corpora's ``download`` does: fetches what the splits (default: all) lack.

    ``describe`` is the corpus' function of that name; ``root``, a folder of this machine, is
    returned.

    Raises:
        ValueError: If there is no such split, or ``root`` is not a folder.
        RuntimeError: As `fetch`.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file, not a folder to download to.")
    wanted = info.splits if splits is None else tuple(splits)
    for split in wanted:
        info.check_split(split)
    try:
        there = () if is_unpacking(root) else describe(root).splits
    except FileNotFoundError:
        there = ()
    missing = set(wanted) - set(there)
    if missing:
        needed = [one for one in info.downloads if not one.splits or missing & set(one.splits)]
        fetch_all(needed, root, progress=progress)
    return root
