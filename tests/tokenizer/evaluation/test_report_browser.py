"""The report in a real browser: headless Chromium, driven by Selenium."""

import json
from pathlib import Path

import pytest
from browsing import DESK, NEEDS_BROWSER, PHONE, open_page, wait_until
from pages import make_page

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder, _ = make_page(tmp_path_factory.mktemp("report"))
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize("dark", [False, True])
def test_pictures_are_there(browser, page, dark):
    open_page(browser, page, DESK, dark)
    # Pictures are loaded when they are scrolled to.
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    wait_until(browser, "[...document.images].every(i => i.complete)")
    empty = browser.execute_script(
        "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    )
    assert empty == []
    shown = browser.execute_script("return [...document.images].map(i => i.currentSrc)")
    themed = [source for source in shown if source.endswith(".svg")]
    assert len(themed) >= 5
    assert all(("-dark.svg" in source) == dark for source in themed)


def test_players_load_and_play_one_at_a_time(browser, page):
    open_page(browser, page, DESK)
    count = browser.execute_script("return document.querySelectorAll('audio').length")
    assert count == 3 * (4 + 5 + 3 + 3)
    # Browsers play only for people who have touched the page.
    browser.find_element("tag name", "h1").click()
    play = """
        const done = arguments[1], audio = document.querySelectorAll("audio")[arguments[0]];
        audio.muted = true;
        audio.addEventListener("timeupdate", () => {
            if (audio.currentTime > 0.05) done([audio.currentTime, audio.duration]);
        });
        audio.addEventListener("error", () => done(audio.error.message));
        audio.play().catch(error => done(String(error)));
    """
    for index in (0, 5, count - 1):
        played = browser.execute_async_script(play, index)
        assert isinstance(played, list), played
        assert played[0] > 0.05
        assert played[1] == pytest.approx(1.0, abs=0.01)
    # Starting one stops the others.
    both = """
        const done = arguments[0], [a, b] = document.querySelectorAll("audio");
        a.muted = b.muted = a.loop = b.loop = true;
        a.play().then(() => b.play()).then(
            () => setTimeout(() => done([a.paused, b.paused]), 100), e => done(String(e)));
    """
    assert browser.execute_async_script(both) == [True, False]


def test_every_sound_decodes(browser, page):
    open_page(browser, page, DESK)
    load = """
        const done = arguments[0];
        Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(next => {
            audio.addEventListener("loadedmetadata", () => next(audio.duration));
            audio.addEventListener("error", () => next(audio.src));
            audio.preload = "metadata";
            audio.load();
        }))).then(done);
    """
    durations = browser.execute_async_script(load)
    assert all(d == pytest.approx(1.0, abs=0.01) for d in durations), durations


@pytest.mark.parametrize("size", [PHONE, (320, 568), (768, 1024), DESK])
def test_the_page_never_scrolls_sideways(browser, page, size):
    open_page(browser, page, size)
    inner, scroll = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert scroll <= inner <= size[0]
    if size[0] < 500:
        # Tables of sounds become cards: nothing of them is cut off either.
        wide = browser.execute_script(
            "return [...document.querySelectorAll('.sounds audio, .sounds img, .sounds p')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth).length"
        )
        assert wide == 0
        labels = browser.execute_script(
            "return [...document.querySelectorAll('td .way')].map(e => e.offsetHeight)"
        )
        assert min(labels) > 0


def test_keyboard_reaches_players_in_order(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page, DESK)
    reached = []
    for _ in range(24):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(
            browser.execute_script(
                "const e = document.activeElement;"
                "return [e.tagName, e.getAttribute('aria-label') || e.textContent.slice(0, 40),"
                " getComputedStyle(e).outlineStyle, e.matches(':focus-visible')]"
            )
        )
    names = [tag for tag, *_ in reached]
    assert reached[0][:2] == ["A", "Skip to the sounds"]
    assert "AUDIO" in names
    heard = list(dict.fromkeys(label for tag, label, *_ in reached if tag == "AUDIO"))
    labels = browser.execute_script(
        "return [...document.querySelectorAll('audio')].map(a => a.getAttribute('aria-label'))"
    )
    assert heard == labels[: len(heard)]
    # Whoever tabs sees where they are; players draw their own focus inside as well.
    assert all(outline != "none" for tag, _, outline, visible in reached if visible)
    space = """
        const done = arguments[0], audio = document.activeElement.closest("audio")
            || document.querySelector("audio");
        audio.muted = true; audio.focus(); done(audio.paused);
    """
    assert browser.execute_async_script(space) is True
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    wait_until(browser, "[...document.querySelectorAll('audio')].some(a => !a.paused)")


def test_the_table_of_figures_leads_to_the_sounds(browser, page):
    open_page(browser, page, PHONE)
    links = browser.find_elements("css selector", "table.numbers a")
    assert links
    browser.execute_script("arguments[0].click()", links[0])
    heading = "document.querySelector(location.hash).getBoundingClientRect()"
    wait_until(browser, f"location.hash && {heading}.top >= 0 && {heading}.top < innerHeight")
    assert browser.execute_script(
        "return document.querySelector(location.hash).parentNode.querySelectorAll('audio').length"
    )


def test_nothing_complains_and_nothing_comes_from_elsewhere(browser, page):
    browser.get_log("browser")
    browser.get_log("performance")
    open_page(browser, page, DESK)
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    browser.execute_script("for (const a of document.querySelectorAll('audio')) a.load()")
    wait_until(browser, "[...document.images].every(i => i.complete)")
    assert browser.get_log("browser") == []
    requested = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            requested.append(message["params"]["request"]["url"])
    assert any(url.endswith("index.html") for url in requested)
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
    # The names in the audio folder ran no script.
    assert browser.execute_script("return document.scripts.length") == 1
    assert Path(page.removeprefix("file://")).exists()
