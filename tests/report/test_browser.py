"""The report as a browser shows it, from disk: quick, silent, by keyboard, in light and dark, on narrow screens."""

from __future__ import annotations

import pytest
from report.browser import EXECUTABLE, Browser
from report.directories import HOSTILE, hostile_study, write_comparison, write_probe, write_profile

from vpretrain.report.page import report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        EXECUTABLE is None, reason="Chromium is missing: apt-get install chromium, or CHROMIUM=/path/to/it"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    it = Browser(tmp_path_factory.mktemp("profile"))
    yield it
    it.close()


@pytest.fixture
def page(tmp_path):
    write_comparison(tmp_path / "study", steps=200)
    write_probe(tmp_path / "study")
    write_profile(tmp_path / "study")
    return report([tmp_path / "study"], tmp_path / "report.html")


def complaints(browser):
    """Errors, dialogs, and whatever was asked for besides the file itself."""
    told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    requests = [what["request"]["url"] for method, what in browser.events if method == "Network.requestWillBeSent"]
    assert requests, "the page itself is one"
    return [event for event in browser.events if event[0] in told] + requests[1:]


@pytest.mark.parametrize("steps", [200, 20_000])
def test_it_opens_from_disk_in_under_two_seconds_and_in_silence(browser, tmp_path, steps):
    write_comparison(tmp_path / "study", steps=steps, seeds=(0,))
    seconds = browser.open(report([tmp_path / "study"], tmp_path / "report.html"))
    assert seconds < 2
    assert complaints(browser) == []
    assert browser.value("document.querySelectorAll('svg').length") > 6


def test_hostile_text_is_text(browser, tmp_path):
    hostile_study(tmp_path / "study")
    browser.open(report([tmp_path / "study"], tmp_path / "report.html"))
    assert complaints(browser) == []
    assert browser.value("document.querySelectorAll('script, img, iframe, [onload]').length") == 0
    assert HOSTILE in browser.value("document.querySelector('main').textContent")
    assert "alert(1)" in browser.value("[...document.querySelectorAll('svg text')].map(t => t.textContent).join()")


def test_everything_is_reached_by_keyboard_and_folds_open(browser, page):
    browser.open(page)
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser.value("document.activeElement.id") == "content"
    browser.value("window.reached = new Set()")
    stops = "[...document.querySelectorAll('summary, main a, .scroll, .wide')].filter(e => e.checkVisibility())"
    count = browser.value(f"{stops}.length")
    assert count > 8
    for _ in range(count):
        browser.press("Tab")
        browser.value("reached.add(document.activeElement)")
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.value("reached.size") == count
    browser.value("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('details').open") is True


def test_pictures_follow_light_and_dark(browser, page):
    browser.open(page)
    seen = {}
    for scheme in ("light", "dark"):
        browser.prefer(prefers_color_scheme=scheme)
        paper, ink, text, line = browser.value(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, "
            "getComputedStyle(document.querySelector('svg text')).fill, "
            "[...document.querySelectorAll('svg path')].map(p => getComputedStyle(p).stroke).join(' ')]"
        )
        assert text == ink != paper
        seen[scheme] = (paper, ink, line)
    assert all(light != dark for light, dark in zip(*seen.values(), strict=True))
    assert seen["light"][0] == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_the_screen(browser, page, width):
    browser.width(width)
    browser.open(page)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    overlapping = """[...document.querySelectorAll('svg')].filter(s => {
        const r = s.getBoundingClientRect()
        return [...s.querySelectorAll('text')].some(t => t.getBoundingClientRect().right > r.right + 2)
    }).length"""
    assert browser.value(overlapping) == 0  # no name is cut off


def test_nothing_moves_for_who_wants_no_motion(browser, page):
    browser.open(page)
    moves = "getComputedStyle(document.documentElement).scrollBehavior"
    browser.prefer(prefers_reduced_motion="no-preference")
    assert browser.value(moves) == "smooth"
    browser.prefer(prefers_reduced_motion="reduce")
    assert browser.value(moves) == "auto"
