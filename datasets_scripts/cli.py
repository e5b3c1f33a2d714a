"""``python -m datasets_scripts``: prepare, verify and publish token datasets.

python -m datasets_scripts prepare audiofolder my_audio --out my_tokens --segment-seconds 10
python -m datasets_scripts verify my_tokens
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from datasets_scripts.preparation.options import Resources, RowOptions
from tokenizer import __version__
from tokenizer.command import in_run_folder, run_command
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from datasets_scripts.dataset.manifest import Manifest


def _prepare(options: argparse.Namespace) -> int:
    if "://" not in options.out:
        return in_run_folder(_prepare_in)(options)
    if options.push_to_hub:
        raise InputError("--push-to-hub uploads from a local --out.")
    return _prepare_in(options)


def _prepare_in(options: argparse.Namespace) -> int:
    request: dict[str, Any] = {
        "tokenizer": options.tokenizer,
        "splits": options.split,
        "options": RowOptions(
            codes=options.codes or not options.latents,
            latents=options.latents,
            n_codebooks=options.n_codebooks,
            bitrate=None if options.bitrate is None else 1000 * options.bitrate,
            segment_seconds=options.segment_seconds,
            downmix=options.downmix,
            clips_per_shard=options.clips_per_shard,
        ),
        "corpus_options": _corpus_options(options),
        "resources": Resources(options.batch_seconds, options.readers),
        "device": options.device,
        "strict": options.strict,
        "progress": sys.stderr.isatty(),
    }
    if options.ray is not None:
        from datasets_scripts.preparation.ray_prepare import connect, prepare_with_ray

        connect(options.ray)
        request["num_actors"] = options.num_proc
        manifest = prepare_with_ray(options.corpus, options.root, options.out, **request)
    else:
        from datasets_scripts.preparation.prepare import prepare_dataset

        request["num_proc"] = 1 if options.num_proc is None else options.num_proc
        manifest = prepare_dataset(options.corpus, options.root, options.out, **request)
    _report(manifest, options.out)
    if options.push_to_hub:
        from datasets_scripts.dataset.hub import push_dataset

        print(push_dataset(options.out, options.push_to_hub))
    return 0


def _corpus_options(options: argparse.Namespace) -> dict[str, str]:
    values = {}
    for text in options.option:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError(f"--option {text!r} is not KEY=VALUE.")
        values[key] = value
    return values


def _download(options: argparse.Namespace) -> int:
    from datasets_scripts.corpora import find_corpus

    corpus = find_corpus(options.corpus)
    corpus_options = _corpus_options(options)
    corpus.INFO.check_options(corpus_options)
    progress = sys.stderr.isatty()
    print(corpus.download(options.root, options.split, progress=progress, **corpus_options))
    return 0


def _report(manifest: Manifest, out: str) -> None:
    rows = sum(shard.rows for shard in manifest.shards)
    print(f"{out}: {rows} rows in {len(manifest.shards)} shards, {', '.join(manifest.splits)}")
    if manifest.failures:
        first = manifest.failures[0]
        print(
            f"{len(manifest.failures)} clips could not be prepared (listed in manifest.json), the"
            f" first: {first.id}: {first.reason}",
            file=sys.stderr,
        )


def _verify(options: argparse.Namespace) -> int:
    from datasets_scripts.dataset.verify import verify_dataset

    problems = verify_dataset(options.dataset, progress=sys.stderr.isatty())
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{options.dataset}: as its manifest says")
    return 2 if problems else 0


def _check(options: argparse.Namespace) -> int:
    from datasets_scripts.sources.audio_check import check_audio

    checked = list(check_audio(options.folder))
    for file in checked:
        if file.refused is not None:
            print(f"{file.path}: refused: {file.refused}")
        elif not file.is_whole:
            print(f"{file.path}: {file.num_samples} samples, FFmpeg decodes {file.expected}")
    wrong = sum(not file.is_whole for file in checked)
    refused = sum(file.refused is not None for file in checked)
    print(f"{len(checked)} files: {refused} refused, {wrong} of another length than FFmpeg's")
    return 2 if wrong else 0


def _export(options: argparse.Namespace) -> int:
    from datasets_scripts.dataset.hub import save_to_disk

    save_to_disk(options.dataset, options.out)
    print(f"{options.out}: for datasets.load_from_disk")
    return 0


def _info(options: argparse.Namespace) -> int:
    from datasets_scripts.corpora import describe_corpus, find_corpus

    info = find_corpus(options.corpus).INFO
    if options.root is not None:
        info = describe_corpus(options.corpus, options.root, _corpus_options(options))
    for field in fields(info):
        value = getattr(info, field.name)
        if field.name == "choices":  # The options' texts have them.
            continue
        if field.name == "downloads":
            value = [f"{file.url} ({file.checksum or 'no checksum published'})" for file in value]
        elif isinstance(value, Mapping):
            value = [f"{key}: {text}" for key, text in value.items()]
        if isinstance(value, list):
            print("\n  ".join([f"{field.name}:", *value]) if value else f"{field.name}: none")
        else:
            print(f"{field.name}: {', '.join(value) if isinstance(value, tuple) else value}")
    return 0


def _list(options: argparse.Namespace) -> int:  # noqa: ARG001
    from datasets_scripts.corpora import CORPORA

    width = max(map(len, CORPORA))
    for name in sorted(CORPORA):
        print(f"{name.ljust(width)}  {CORPORA[name].INFO.title}")
    return 0


def _add_corpus(parser: argparse.ArgumentParser, root: str, *, optional: bool = False) -> None:
    parser.add_argument("corpus", help="name of a corpus; `list` prints them")
    parser.add_argument("root", nargs="?" if optional else None, help=root)
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the corpus, as `info CORPUS` lists them; may be repeated; default: none",
    )  # fmt: skip


_DEFAULT = " default: %(default)s"


def _add_options(group: Any, options: Mapping[str, tuple[type | None, str, str]]) -> None:
    """Adds options by name: the type of their value (None for a switch), its metavar, the help."""
    for name, (kind, metavar, text) in options.items():
        how: Any = {"type": kind, "metavar": metavar} if kind else {"action": "store_true"}
        group.add_argument(name, help=text, **how)


def _add_prepare(commands: Any) -> None:
    p = commands.add_parser("prepare", help="encode a corpus; resumes where it was stopped")
    p.set_defaults(run=_prepare)
    _add_corpus(p, "where the corpus is: a folder, or as `info CORPUS` says")
    p.add_argument("--out", required=True, help="folder or fsspec address of the dataset to write")
    p.add_argument("--tokenizer", metavar="T", help="folder or hub id; default: the bundled model")
    p.add_argument("--split", nargs="+", help="splits to prepare; default: all of the corpus")
    rows = p.add_argument_group("rows")
    _add_options(rows, {
        "--codes": (None, "", "store codes; default: yes, unless --latents is given"),
        "--latents": (None, "", "store latents, alone or with --codes; default: no"),
    })  # fmt: skip
    _add_options(rows.add_mutually_exclusive_group(), {
        "--n-codebooks": (int, "N", "codebooks to store; default: all of the tokenizer"),
        "--bitrate": (float, "KBIT", "instead of --n-codebooks: the most that fit into this many"
                      " kbit/s and channel; default: all"),
    })  # fmt: skip
    _add_options(rows, {
        "--segment-seconds": (float, "S", "cut clips into rows of S seconds; default: a row a"
                              " clip"),
        "--downmix": (None, "", "average the channels into one; default: keep them"),
        "--clips-per-shard": (int, "N", "clips of a shard, the unit of resuming;" + _DEFAULT),
    })  # fmt: skip
    work = p.add_argument_group("work (none of these changes the rows)")
    _add_options(work, {
        "--num-proc": (int, "N", "processes; with --ray, actors; default: 1, with --ray one per"
                       " device"),
        "--device": (str, "DEVICE", "torch device; cuda uses all GPUs in turn;" + _DEFAULT),
        "--batch-seconds": (float, "S", "audio of a batch, in seconds;" + _DEFAULT),
        "--readers": (int, "N", "threads of a process that read ahead;" + _DEFAULT),
        "--strict": (None, "", "stop at the first unreadable clip; default: list it and continue"),
        "--push-to-hub": (str, "REPO", "upload the dataset afterwards, as user/name; default: do"
                          " not"),
    })  # fmt: skip
    work.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS",
                      help="run on a Ray cluster: auto, HOST:PORT, or without an address one on"
                      " this machine; default: do not")  # fmt: skip
    p.set_defaults(
        clips_per_shard=RowOptions.clips_per_shard,
        device="cpu",
        batch_seconds=Resources.batch_seconds,
        readers=Resources.num_readers,
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m datasets_scripts`."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets_scripts", description="Audio corpora as datasets of tokens."
    )
    parser.add_argument("--version", action="version", version=f"latent-tokenizer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(commands)

    p = commands.add_parser("verify", help="check a prepared dataset against its manifest")
    p.set_defaults(run=_verify)
    p.add_argument("dataset", help="folder or fsspec address")

    p = commands.add_parser("check", help="read all audio in a folder; compare lengths with FFmpeg")
    p.set_defaults(run=_check)
    p.add_argument("folder", help="folder of audio files, of any suffix")

    p = commands.add_parser("export", help="write a prepared dataset for load_from_disk")
    p.set_defaults(run=_export)
    p.add_argument("dataset", help="folder or fsspec address")
    p.add_argument("out", help="folder to write; it must not exist")

    p = commands.add_parser("info", help="what a corpus is: splits, licence, citation, options")
    p.set_defaults(run=_info)
    _add_corpus(p, "where the corpus is; then only the splits that are there", optional=True)

    p = commands.add_parser("download", help="fetch a corpus from its official addresses")
    p.set_defaults(run=_download)
    _add_corpus(p, "folder for it; what is there is not fetched again")
    p.add_argument("--split", nargs="+", help="splits to fetch; default: all")

    p = commands.add_parser("list", help="print the names of the corpora")
    p.set_defaults(run=_list)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; see `tokenizer.command.run_command` for the exit code."""

    def command() -> int | None:
        options = build_parser().parse_args(arguments)
        return options.run(options)

    return run_command("datasets_scripts", command)
