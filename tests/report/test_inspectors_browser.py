"""The inspectors in a browser: keys, filters, points in training. Chromium runs a page with a script, and prints it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from test_inspectors import HOSTILE, language_run, vision_run  # noqa: F401

from vpretrain.report.inspectors import inspectors

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

_PROBE = """<script>
const found = {errors};
const pressed = (key) => new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true});
const press = (key) => document.activeElement.dispatchEvent(pressed(key));
try { %s } catch (error) { found.errors.push(String(error)); }
document.body.replaceChildren();
document.title = JSON.stringify(found);
</script>"""


def in_browser(tmp_path, fragment, script):
    page = tmp_path / "page.html"
    errors = "<script>const errors = []; addEventListener('error', (event) => errors.push(event.message));</script>"
    head = "<!doctype html><meta charset=utf-8><title></title><body>"
    page.write_text(head + errors + str(fragment) + _PROBE % script, encoding="utf-8")
    settings = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *settings, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    found = json.loads(html.unescape(title))
    assert found["errors"] == []
    return found


def test_targets_by_keyboard_and_filters(tmp_path, language_run):  # noqa: F811
    found = in_browser(
        tmp_path,
        inspectors(language_run.directory)[0],
        """
        const all = [...document.querySelectorAll(".vp-rows .vp-target")];
        const stops = () => all.filter((e) => e.tabIndex === 0).length;
        const at = () => all.indexOf(document.activeElement);
        const change = (name, value) => {
            const select = document.querySelector(name);
            select.value = value;
            select.dispatchEvent(new Event("change"));
        };
        found.targets = all.length;
        found.stops = [stops()];
        all[0].focus();
        const keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"];
        found.walk = keys.map((key) => (press(key), at()));
        press("ArrowDown");
        found.below = all[0].getBoundingClientRect().top < document.activeElement.getBoundingClientRect().top;
        press("ArrowUp");
        found.above = all[0].getBoundingClientRect().top === document.activeElement.getBoundingClientRect().top;
        found.stops.push(stops());
        found.said = document.querySelector(".vp-said").textContent;
        const bars = [...document.querySelectorAll(".vp-panel td.vp-bar")];
        found.longest = Math.max(...bars.map((cell) => Number(cell.style.getPropertyValue("--share"))));
        found.lines = document.querySelectorAll(".vp-panel tbody tr").length;
        all[2].dispatchEvent(new MouseEvent("mouseenter"));
        found.hovered = document.querySelector(".vp-said").textContent !== found.said;
        change(".vp-which", "opposed");
        found.opposed = all.filter((e) => !e.classList.contains("vp-off")).every((e) => e.classList.contains("vp-opposed"));
        found.count = document.querySelector(".vp-count").textContent;
        document.querySelector(".vp-target[tabindex='0']").focus();
        press("End");
        found.last = at() === all.findLastIndex((e) => e.classList.contains("vp-opposed"));
        change(".vp-which", "");
        found.domains = [...document.querySelector(".vp-domain").options].map((option) => option.value);
        change(".vp-domain", found.domains[1]);
        const rows = [...document.querySelectorAll(".vp-row")].filter((row) => !row.hidden);
        found.rows = rows.map((row) => row.firstChild.textContent);
        """,
    )
    last = found["targets"] - 1
    assert found["walk"] == [1, 2, 1, last, last, 0, 0]
    assert found["stops"] == [1, 1]
    assert found["below"]
    assert found["above"]
    assert re.fullmatch(r"“.+”, domain .+: alpha \d\.\d+; target \d\.\d+ on this true token, .*", found["said"])
    assert found["lines"] == 8 + 1
    assert found["longest"] == 1
    assert found["hovered"]
    assert found["opposed"]
    assert found["last"]
    assert re.fullmatch(rf"\d+ of {found['targets']} targets", found["count"])
    assert set(found["domains"]) == {"", "sums", HOSTILE}
    assert set(found["rows"]) == {found["domains"][1]}


def test_points_in_training(tmp_path, vision_run):  # noqa: F811
    found = in_browser(
        tmp_path,
        inspectors(vision_run.directory)[0],
        """
        const images = [...document.querySelectorAll("img")];
        const now = () => [document.querySelector(".vp-count").textContent, images[1].src, images[1].alt];
        found.alts = images.every((image) => image.alt);
        found.shown = images.length;
        found.last = now();
        document.querySelector(".vp-on").click();
        found.same = now();
        for (let i = 0; i < 9; i++) document.querySelector(".vp-back").click();
        found.first = now();
        const slider = document.querySelector(".vp-point");
        slider.value = "1";
        slider.dispatchEvent(new Event("input"));
        found.second = now();
        found.spoken = slider.getAttribute("aria-valuetext");
        """,
    )
    assert found["shown"] == 18
    assert found["alts"]
    assert found["last"] == found["same"]
    assert found["last"][0].startswith("after step 10, ")
    assert found["first"][0].startswith("before the first step")
    assert found["second"][0].startswith("after step 2, ")
    assert found["spoken"] == found["second"][0]
    assert found["first"][1] != found["last"][1]
    assert "kept sharp" in found["first"][2]
