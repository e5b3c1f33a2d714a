"""Preparation in processes: several at once, killed ones, and with little memory."""

import multiprocessing
import multiprocessing.util
import os
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from models import RATE, tone
from preparing import SHARDS_OF_TWO, assert_same_rows, files_of, rows_of, write

from datasets_scripts import Resources, RowOptions, prepare_dataset
from datasets_scripts.preparation.encoding import NumberedClip
from datasets_scripts.preparation.job import start_job
from datasets_scripts.preparation.options import Request
from datasets_scripts.preparation.workers import write_in_processes
from datasets_scripts.sources.corpus import AudioBytes, CorpusClip
from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.model.latent_tokenizer import LatentTokenizer

TWO = {"num_proc": 2, "device": "cpu", "strict": False}


@pytest.fixture(scope="module")
def quick():
    """Processes that have imported everything already, and are forked from one without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["datasets_scripts.preparation.prepare", "datasets", "pyarrow.parquet"]
    )
    return context


@pytest.mark.slow
def test_two_processes_write_the_same_files(spoiled, spoiled_files, tokenizer, tmp_path):
    prepare_dataset(
        "audiofolder",
        spoiled,
        tmp_path / "o",
        tokenizer=tokenizer,
        options=SHARDS_OF_TWO,
        num_proc=2,
    )
    assert files_of(tmp_path / "o") == spoiled_files


@pytest.mark.slow
def test_errors_pass_from_process_to_process(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "x.wav", tone(0.2).T, RATE)
    (tmp_path / "in" / "y.wav").write_bytes(b"no audio")
    how = {"tokenizer": tokenizer, "num_proc": 2}
    with pytest.raises(RuntimeError, match=r"--strict: y\.wav: "):
        prepare_dataset("audiofolder", tmp_path / "in", tmp_path / "o", strict=True, **how)

    def broken(error):
        yield NumberedClip(0, CorpusClip("x", tmp_path / "in" / "x.wav"))
        raise error

    # An error of the network is not mistaken for one of the pipes: rows would be missing.
    job = start_job(Request("audiofolder", tmp_path / "in", tmp_path / "p", tokenizer))
    for error in (ValueError("the corpus is broken"), ConnectionResetError("the server is gone")):
        with pytest.raises(type(error), match=str(error)):
            list(write_in_processes(job, "train", broken(error), Resources(), **TWO))


@pytest.mark.slow
def test_audio_in_memory_reaches_the_processes(tokenizer, tmp_path, stand_in):
    # As clips of archives and of the hub have it.
    contents = [write(tmp_path / f"{i}.wav", 0.2 + 0.1 * i).read_bytes() for i in range(5)]
    stand_in(*(CorpusClip(str(i), AudioBytes(c, str(i))) for i, c in enumerate(contents)))
    for num_proc in (1, 2):
        prepare_dataset(
            "x", tmp_path, tmp_path / str(num_proc), tokenizer=tokenizer, options=SHARDS_OF_TWO,
            num_proc=num_proc,
        )  # fmt: skip
    assert_same_rows(rows_of(tmp_path / "1"), rows_of(tmp_path / "2"))


@pytest.mark.slow
def test_a_device_that_is_not_there_is_named(spoiled, tokenizer, tmp_path):
    how = {"tokenizer": tokenizer, "num_proc": 2, "device": "cuda:99"}
    with pytest.raises(RuntimeError, match="'cuda:99'"):
        prepare_dataset("audiofolder", spoiled, tmp_path / "o", **how)


@pytest.mark.slow
def test_a_worker_that_dies_is_named(spoiled, spoiled_files, tokenizer, tmp_path):
    out = tmp_path / "o"
    options = {"tokenizer": tokenizer, "options": SHARDS_OF_TWO}
    killed = []

    def kill_one(frame, event, argument):  # noqa: ARG001
        children = multiprocessing.active_children()
        if children and not killed and list(out.glob("progress/*.json")):
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    import sys

    sys.setprofile(kill_one)
    try:
        with pytest.raises(RuntimeError, match="-9"):
            prepare_dataset("audiofolder", spoiled, out, num_proc=2, **options)
    finally:
        sys.setprofile(None)
    assert killed
    assert multiprocessing.active_children() == []
    # It goes on from the last whole shard, with another number of processes too.
    prepare_dataset("audiofolder", spoiled, out, **options)
    assert files_of(out) == spoiled_files


def _prepare(spoiled, out, tokenizer):
    torch.set_num_threads(1)
    prepare_dataset("audiofolder", spoiled, out, tokenizer=tokenizer, options=SHARDS_OF_TWO)


@pytest.mark.slow
def test_killed_at_random_and_started_again(spoiled, spoiled_files, tokenizer, tmp_path, quick):
    def start(out):
        process = quick.Process(target=_prepare, args=(spoiled, out, tokenizer))
        process.start()
        return process

    rng = np.random.default_rng(0)
    kills = kept = 0
    # How often a run is killed before it ends depends on the machine.
    for attempt in range(24):
        if kills >= 4 and kept >= 10:
            break
        out = tmp_path / f"killed{attempt}"
        while True:
            before = {p: p.stat().st_mtime_ns for p in out.glob("progress/*.json")}
            process = start(out)
            # At some moment while one of the next shards is made, or the split is finished.
            aim = len(before) + int(rng.integers(0, 5))
            while process.is_alive() and len(list(out.glob("progress/*.json"))) < aim:
                time.sleep(0.001)
            process.join(rng.uniform(0, 0.05))
            process.kill()
            process.join()
            after = {p: p.stat().st_mtime_ns for p in out.glob("progress/*.json")}
            # What was whole is not written again.
            assert all(after.get(path, time) == time for path, time in before.items())
            kept += len(before)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        assert files_of(out) == spoiled_files
    assert kills >= 4
    assert kept >= 10


# Memory

RATE_48 = 48_000
BUDGET = 64 * 2**20


def _tokenizer_48():
    torch.manual_seed(0)
    autoencoder = LappedAutoencoder(
        LappedConfig(
            sampling_rate=RATE_48, hop_length=240, latent_dim=4, encoder_width=8, encoder_depth=1,
            decoder_width=8, decoder_depth=1,
        )
    )  # fmt: skip
    autoencoder.initialize(torch.diag(torch.linspace(2, 0.01, 240)))
    return LatentTokenizer.from_autoencoder(autoencoder.eval())


def _peak():
    with open("/proc/self/status") as status:  # noqa: PTH123
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) * 1024


def _measure(small, large, out, results):
    torch.set_num_threads(1)
    how = {"tokenizer": _tokenizer_48(), "resources": Resources(batch_seconds=5)}
    options = {
        "segments": RowOptions(codes=False, latents=True, segment_seconds=10),
        "whole": RowOptions(codes=False, latents=True),
    }
    for name, option in options.items():  # What is allocated once and for all, is allocated now.
        prepare_dataset("audiofolder", small, out / f"small {name}", options=option, **how)
    before = _peak()
    for name, option in options.items():
        manifest = prepare_dataset("audiofolder", large, out / name, options=option, **how)
        rows = sum(shard.rows for shard in manifest.shards)
        results.put((name, rows, len(manifest.failures), _peak() - before))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")  # noqa: PTH110
def test_ten_times_more_audio_than_memory(tmp_path, quick, monkeypatch):
    # The allocator raises this by itself, and then keeps what should be given back.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    audio = np.tile(tone(10, RATE_48)[0], 18)
    soundfile.write(tmp_path / "x.flac", audio, RATE_48)
    files = -(-10 * BUDGET // audio.nbytes)
    for folder, number in ((small, 4), (large, files)):
        for i in range(number):
            os.link(tmp_path / "x.flac", folder / f"{i}.flac")
    # And a file that alone is larger than the budget.
    with soundfile.SoundFile(large / "long.flac", "w", RATE_48, 1) as stream:
        for _ in range(2):
            stream.write(audio)
    assert 2 * audio.nbytes > BUDGET
    results = quick.Queue()
    process = quick.Process(target=_measure, args=(small, large, tmp_path, results))
    process.start()
    segments, whole = results.get(), results.get()
    process.join()
    assert segments[:3] == ("segments", 18 * (files + 2), 0)
    assert whole[:3] == ("whole", files + 1, 0)
    # Of ten budgets' audio.
    assert segments[3] < 2 * BUDGET, segments[3] / BUDGET
    assert whole[3] < 2 * BUDGET, whole[3] / BUDGET


@pytest.mark.slow
def test_a_worker_that_dies_before_it_has_read_anything(tokenizer, tmp_path, monkeypatch):
    # As one does that is killed for its memory while it imports torch. The tokenizer is larger than
    # a pipe: whoever writes it to nobody must notice.
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_and_kill(path, arguments, descriptors):
        process = spawn(path, arguments, descriptors)
        if b"--multiprocessing-fork" in map(os.fsencode, arguments):
            os.kill(process, signal.SIGKILL)
        return process

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", spawn_and_kill)
    write(tmp_path / "x.wav")
    job = start_job(Request("audiofolder", tmp_path, tmp_path / "o", tokenizer))
    with pytest.raises(RuntimeError, match="-9"):
        list(write_in_processes(job, "train", [], Resources(), **TWO))
    assert multiprocessing.active_children() == []
