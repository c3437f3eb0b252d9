"""The site as a browser shows it, from disk: its search, and what the copy buttons copy."""

from __future__ import annotations

import json
import re
import time

import pytest
from pages import ROOT, build_site
from report.browser import EXECUTABLE, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        EXECUTABLE is None, reason="Chromium is missing: apt-get install chromium, or CHROMIUM=/path/to/it"
    ),
]
# Keeps what a button copies: the clipboard itself belongs to a window that has the focus.
KEEP = "navigator.clipboard.writeText = async text => { window.copied = text }"


def found(browser):
    """Where the results of a search lead, the first one first, once all are there."""
    until = time.monotonic() + 20
    while browser.value("document.querySelector('#search-results h2')?.innerText") != "Search Results":
        assert time.monotonic() < until, "the search does not end"
        time.sleep(0.1)
    return browser.value("[...document.querySelectorAll('#search-results li > a')].map(a => a.getAttribute('href'))")


def copied(browser, text):
    """What the button on the first block with this text copies."""
    browser.value(KEEP)
    block = f"[...document.querySelectorAll('div.highlight')].find(b => b.innerText.includes({json.dumps(text)}))"
    browser.value(f"{block}.querySelector('button.copy').click()")
    return browser.value("window.copied")


def test_a_heading_is_found_first_and_prompts_are_not_copied(tmp_path):
    site = build_site(tmp_path)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(site / "search.html", "q=out+of+memory")
        assert found(browser)[0] == "troubleshooting.html#out-of-memory"
        browser.open(site / "start.html")
        (first, _) = re.findall(
            r"```console\n(.*?)```", (ROOT / "docs/start.md").read_text(encoding="utf-8"), re.DOTALL
        )
        assert copied(browser, "vpretrain check recipe.yaml") == first.strip().removeprefix("$ ").replace("\n$ ", "\n")
        browser.open(site / "api.html")
        called = 'recipe = load_recipe("recipe.yaml", ["arm=v", "optimizer.lr=1e-5"])'
        assert copied(browser, called) == f"{called}\nrecipe.optimizer.lr"
    finally:
        browser.close()
