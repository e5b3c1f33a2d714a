"""`latok app` in a real browser: headless Chromium, driven by Selenium."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import models
import pytest
from browsing import DESK, NEEDS_BROWSER, PHONE, open_page, wait_until
from models import RATE, tone

from tokenizer import write_audio

SUPPORT = Path(models.__file__).parent
if find_spec("gradio") is None:
    pytest.skip("gradio is not installed", allow_module_level=True)

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("uploads")
    write_audio(root / "a b.wav", tone(1.0, channels=2), RATE)
    (root / "broken.wav").write_bytes(b"no audio <b>at all</b>")
    return root


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a running app; where it connects to; where Gradio keeps files."""
    root = tmp_path_factory.mktemp("app")
    log, cache = root / "connections", root / "cache"
    env = os.environ | {
        "PYTHONPATH": f"{SUPPORT}:{SUPPORT.parents[1]}",
        "GRADIO_TEMP_DIR": str(cache),
    }
    process = subprocess.Popen(
        [sys.executable, SUPPORT / "served_app.py", log], env=env, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.match(r"Open (http://127.0.0.1:\d+/) in a browser", said)
        assert found, said
        yield found[1], log
        process.send_signal(signal.SIGINT)
        process.stdout.read()  # until it has ended: with nobody reading, its last words would fail
    assert process.returncode == 0
    # What people upload is gone when the app is.
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@pytest.fixture
def page(browser, served):
    browser.get_log("browser")
    browser.get_log("performance")
    open_page(browser, served[0], DESK)
    wait_until(browser, "document.querySelector('#code')")
    return browser


def upload(page, path: Path) -> None:
    page.find_element("css selector", "#input input[type=file]").send_keys(str(path))
    wait_until(page, "document.querySelector('#input audio')")


def click(page, name: str) -> None:
    page.execute_script(f"document.querySelector('#{name}').click()")


def sounds(page, where: str = "#sounds") -> list[float]:
    """Durations of the players, once all are loaded."""
    script = f"[...document.querySelectorAll('{where} audio')]"
    wait_until(page, f"{script}.length && {script}.every(a => a.src && a.readyState >= 1)")
    return page.execute_script(f"return {script}.map(a => a.duration)")


def messages(page) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('.toast-body')].map(e => e.innerText)"
    )


def complaints(page) -> list[str]:
    """Errors in the console. Gradio itself warns twice of a method that is not implemented."""
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_file_is_heard_and_seen(page, files):
    upload(page, files / "a b.wav")
    click(page, "code")
    wait_until(page, "document.querySelector('#figures table')", 120)
    assert sounds(page) == pytest.approx([1.0] * 3, abs=0.01)
    play = """
        const done = arguments[1], a = document.querySelectorAll("#sounds audio")[arguments[0]];
        a.muted = true;
        a.addEventListener("timeupdate", () => { if (a.currentTime > 0.05) done(a.currentTime); });
        a.addEventListener("error", () => done(a.error.message));
        a.play().catch(error => done(String(error)));
    """
    page.find_element("tag name", "h1").click()
    for index in range(3):
        assert page.execute_async_script(play, index) > 0.05
    images = "[...document.querySelectorAll('#sounds img, #codes img')]"
    wait_until(page, f"{images}.length == 4 && {images}.every(i => i.complete)")
    assert all(page.execute_script(f"return {images}.map(i => i.naturalWidth)"))
    assert "Spectrogram: continuous" in page.execute_script(f"return {images}.map(i => i.alt)")
    table = page.find_element("css selector", "#figures table").text
    assert "SI-SDR" in table
    assert "continuous latents" in table
    assert "a b.ltk" in page.find_element("tag name", "body").text.replace("\n", "")
    assert complaints(page) == []


def set_number(page, where: str, value: float) -> None:
    page.execute_script(
        f"const n = document.querySelector('{where} input[type=number]'); n.value = {value};"
        "n.dispatchEvent(new Event('input', {bubbles: true})); n.blur()"
    )


def test_rate_and_model_change_what_is_heard(page, files):
    upload(page, files / "a b.wav")
    found: list[str] = [""]
    for step in ("all codebooks", "one codebook", "the other model"):
        if step == "one codebook":
            set_number(page, "#rate", 1)
        elif step == "the other model":
            page.find_element("css selector", "#model input").click()
            option = (
                "[...document.querySelectorAll('#model li')].find(e => /other/.test(e.innerText))"
            )
            wait_until(page, option)
            # Chosen on the press of the button, before a click is over.
            page.execute_script(
                f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))"
            )
            wait_until(page, "document.querySelector('#rate input[type=number]').value == 4")
        click(page, "code")
        player = "document.querySelectorAll('#sounds audio')[2]"
        wait_until(page, f"{player} && {player}.src != {json.dumps(found[-1])}", 120)
        found.append(page.execute_script(f"return {player}.src"))
    assert len(set(found)) == 4
    assert complaints(page) == []


@pytest.mark.parametrize(
    ("file", "said"),
    [("broken.wav", "Cannot read broken.wav as audio"), ("", "Drop an audio file first")],
)
def test_bad_input_is_one_message(page, files, file, said):
    if file:
        upload(page, files / file)
    click(page, "code")
    wait_until(page, "document.querySelector('.toast-body')", 120)
    (message,) = messages(page)
    assert said in message
    assert "/tmp" not in message
    assert not page.execute_script("return document.querySelector('.toast-body b')")


def test_generation(page):
    click(page, "generate")
    wait_until(page, "document.querySelector('#generated audio')", 120)
    assert sounds(page, "#generated") == pytest.approx([5.0], abs=0.01)
    assert complaints(page) == []


def test_bad_wishes_are_one_message(page):
    set_number(page, "#generating", 31)
    click(page, "generate")
    wait_until(page, "document.querySelector('.toast-body')", 120)
    assert "30 seconds are <b>enough</b>." in messages(page)[0]


def test_it_fits_on_a_telephone(browser, served):
    open_page(browser, served[0], PHONE)
    wait_until(browser, "document.querySelector('#code')")
    width, scroll = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert scroll <= width


def test_nothing_leaves_the_machine(page, served):
    # After all that the tests above have done.
    asked = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    addresses = {
        message["params"]["request"]["url"]
        for message in asked
        if message["method"] == "Network.requestWillBeSent"
    }
    assert any(address.startswith(served[0]) for address in addresses)
    elsewhere = ("http", "ws", "//")
    assert not [a for a in addresses if a.startswith(elsewhere) and not a.startswith(served[0])]
    connected = set(served[1].read_text().split()) if served[1].exists() else set()
    assert connected <= {"127.0.0.1", "localhost", "::1", "local"}
