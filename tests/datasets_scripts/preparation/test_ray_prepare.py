"""The same preparation on a Ray cluster of two nodes, one of whose workers is killed."""

import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from preparing import SHARDS_OF_TWO, files_of, make_folder

from datasets_scripts import prepare_dataset, prepare_with_ray
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.preparation.ray_prepare import connect

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and files that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray = pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
        cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
        # The processes of Ray are not in the folder of the tests, and have no path to the modules.
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        ray.init(
            address=cluster.address,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        )
    yield ray
    ray.shutdown()
    cluster.shutdown()


def test_a_worker_killed_in_the_middle_changes_nothing(
    cluster, spoiled, spoiled_files, tokenizer, tmp_path
):
    assert len(cluster.nodes()) == 2
    out = tmp_path / "o"
    killed = []

    def kill_one():
        # An actor's process, as soon as the first shards are there.
        while not list(out.glob("progress/*.json")):
            time.sleep(0.01)
        while not killed:
            for process in psutil.Process().children(recursive=True):
                # Some end while one looks at them.
                with suppress(psutil.Error):
                    if "_ShardActor" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    manifest = prepare_with_ray(
        "audiofolder", spoiled, out, tokenizer=tokenizer, options=SHARDS_OF_TWO, num_actors=2
    )
    killer.join(timeout=10)
    assert killed
    assert files_of(out) == spoiled_files
    assert [failure.id for failure in manifest.failures] == ["a/clip004x.wav"]


def test_it_goes_on_from_and_to_addresses(cluster, spoiled, spoiled_files, tokenizer, tmp_path):
    assert cluster.is_initialized()
    address = f"file://{tmp_path}/o"
    root = f"file://{spoiled}"
    how = {"tokenizer": tokenizer, "options": SHARDS_OF_TWO}
    # Begun on one machine, stopped at the broken file, finished by the cluster.
    with pytest.raises(RuntimeError, match=r"--strict: a/clip004x\.wav"):
        prepare_dataset("audiofolder", root, address, strict=True, **how)
    assert Folder(address).names("progress")
    prepare_with_ray("audiofolder", root, address, num_actors=1, **how)
    found = files_of(tmp_path / "o")
    assert {k: v for k, v in found.items() if k.startswith("data/")} == {
        k: v for k, v in spoiled_files.items() if k.startswith("data/")
    }
    assert found["statistics.json"] == spoiled_files["statistics.json"]


def test_errors_are_one_line(cluster, spoiled, tokenizer, tmp_path):
    assert cluster.is_initialized()
    how = {"tokenizer": tokenizer, "options": SHARDS_OF_TWO, "num_actors": 1}
    out = tmp_path / "o"
    with pytest.raises(RuntimeError, match=r"^--strict: a/clip004x\.wav: "):
        prepare_with_ray("audiofolder", spoiled, out, strict=True, **how)
    broken = tmp_path / "broken"
    make_folder(broken, 1)
    (broken / "metadata.csv").write_text("file,label\na/clip000.wav,x\n")
    with pytest.raises(ValueError, match="file_name") as caught:
        prepare_with_ray("audiofolder", broken, tmp_path / "q", **how)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="GPU"):
        prepare_with_ray("audiofolder", spoiled, tmp_path / "p", tokenizer=tokenizer, device="cuda")


def test_without_ray_it_says_what_to_install(monkeypatch):
    # None in sys.modules refuses an import, also of a module that is loaded already.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "latent-tokenizer\[ray'):
        connect("local")
