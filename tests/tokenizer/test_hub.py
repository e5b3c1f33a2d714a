"""Names of models that are not there: told from names on the hub, which is asked once."""

import socket
import threading

import huggingface_hub
import pytest

from generative.conditioning import TextEncoder
from generative.diffusion.latent_diffusion import LatentDiffusion
from generative.language_model.codec_lm import CodecLM
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.autoencoders.pretrained import load_autoencoder
from tokenizer.cli import main
from tokenizer.model.loading import load_core, load_for_fitting

LOADERS = {
    "tokenizer": LatentTokenizer.from_pretrained,
    "by name": load_tokenizer,
    "core": load_core,
    "to fit": load_for_fitting,
    "autoencoder": load_autoencoder,
    "language model": CodecLM.from_pretrained,
    "diffusion model": LatentDiffusion.from_pretrained,
    "text encoder": TextEncoder.from_pretrained,
}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A hub that hangs up: what it was asked, a connection each."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:  # The test is over.
                    return
                connections.append(connection)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        constants = huggingface_hub.constants
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        yield connections
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_paths_are_not_asked_for_and_names_once(asked, tmp_path, load):
    (tmp_path / "runs").mkdir()
    for name in ("runs/modle", "./modle", "/modle", "~/modle", "a/b/c", "my models/1", "a\\b/c"):
        with pytest.raises(FileNotFoundError, match=r"No such checkpoint folder") as error:
            load(name)
        assert name in str(error.value)
    assert not asked
    with pytest.raises(FileNotFoundError, match="some-owner/some-model") as error:
        load("some-owner/some-model")
    assert 1 <= len(asked) <= 2  # One may be closed before it is used; it had been six.
    assert "\n" not in str(error.value)


def test_a_command_says_it_in_a_line(asked, capsys):
    assert main(["info", "some-owner/some-model"]) == 2
    assert 1 <= len(asked) <= 2  # One may be closed before it is used; it had been six.
    assert len(capsys.readouterr().err.splitlines()) == 1
