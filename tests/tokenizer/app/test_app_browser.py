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


FOCUS = """
    const e = document.activeElement;
    const places = "input example model rate code sounds codes generating generated generate";
    const place = e.closest(places.split(" ").map(name => "#" + name).join(","));
    const shown = e.closest("button, label, [class*=wrap], .block") || e;
    const rings = [e, shown].map(part => getComputedStyle(part));
    return {
        tag: e.tagName, place: place ? place.id : "",
        seen: rings.some(s => s.outlineStyle != "none" || s.boxShadow != "none"),
    }
"""


def press(page, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def tab_to(page, place: str, tag: str, most: int = 60) -> list[dict]:
    """Tabs on to an element within one that has an id; all that had the focus on the way."""
    passed = []
    for _ in range(most):
        press(page, "\ue004")
        name = page.switch_to.active_element.accessible_name
        passed.append(page.execute_script(FOCUS) | {"name": name})
        if passed[-1]["place"] == place and passed[-1]["tag"] == tag:
            return passed
    raise AssertionError(f"{place} has no {tag} that the keyboard reaches: {passed}")


def test_everything_is_done_by_keyboard(page):
    enter, space = "\ue007", " "
    passed = tab_to(page, "example", "BUTTON")
    assert any(step["place"] == "input" and step["tag"] == "BUTTON" for step in passed)
    press(page, enter)
    wait_until(page, "document.querySelector('#input audio')")
    passed += tab_to(page, "rate", "INPUT")
    number = "document.querySelector('#rate input[type=number]')"
    page.execute_script(f"{number}.focus()")
    press(page, "\ue009", "a")
    press(page, "\ue000", "2")
    passed += tab_to(page, "code", "BUTTON")
    assert page.execute_script(f"return {number}.value") == "2"
    press(page, space)
    wait_until(page, "document.querySelector('#figures table')", 120)
    sounds(page)
    passed += tab_to(page, "sounds", "AUDIO")
    page.execute_script("document.activeElement.muted = true")
    press(page, space)
    wait_until(page, "[...document.querySelectorAll('#sounds audio')].some(a => !a.paused)")
    passed += tab_to(page, "generate", "BUTTON")
    press(page, enter)
    wait_until(page, "document.querySelector('#generated audio')", 120)
    # Whoever tabs sees where they are, and hears what it is. Players are the browser's own: it
    # says what their parts are, and draws the focus inside.
    others = [step for step in passed if step["tag"] != "AUDIO"]
    assert [step for step in others if not step["name"]] == []
    # A caret or the colour of the border shows which field has the focus.
    assert [step for step in others if not step["seen"] and step["tag"] != "INPUT"] == []
    assert complaints(page) == []


OUTSIDE = """
    return [...document.querySelectorAll("button, input, audio, img, table, .toast-body")]
        .filter(e => e.offsetWidth && getComputedStyle(e).visibility != "hidden")
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1
            || e.getBoundingClientRect().left < -1)
        .map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 30)}`)
"""


@pytest.mark.parametrize("size", [PHONE, (320, 568)])
def test_it_is_used_on_a_telephone(browser, served, files, size):
    open_page(browser, served[0], size)
    wait_until(browser, "document.querySelector('#code')")
    assert fits(browser, size)
    click(browser, "code")
    wait_until(browser, "document.querySelector('.toast-body')", 120)
    assert fits(browser, size)
    upload(browser, files / "a b.wav")
    for name in ("code", "generate"):
        # As a finger finds it: nothing else lies over the button.
        button = browser.find_element("id", name)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        close = "[...document.querySelectorAll('.toast-close')].forEach(e => e.click())"
        browser.execute_script(close)
        wait_until(browser, "!document.querySelector('.toast-body')")
        assert button.size["height"] >= 32
        button.click()
    wait_until(browser, "document.querySelector('#figures table')", 120)
    wait_until(browser, "document.querySelector('#generated audio')", 120)
    assert len(sounds(browser)) == 3
    assert fits(browser, size)


def fits(browser, size: tuple[int, int]) -> bool:
    """Whether nothing is beyond the edges, and the page does not scroll sideways."""
    assert browser.execute_script(OUTSIDE) == []
    page = "document.documentElement"
    return browser.execute_script(f"return {page}.scrollWidth <= {page}.clientWidth") and (
        browser.execute_script("return innerWidth") == size[0]
    )


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
