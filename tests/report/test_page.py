"""The report as a page: what it holds stays text, nothing is loaded from elsewhere, and it can be read out and seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report.directories import hostile_study, write_comparison
from report.page import made

from vpretrain.report import page as page_module
from vpretrain.report.page import report


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The page of a comparison that holds hostile text wherever text can come from."""
    root = tmp_path_factory.mktemp("hostile")
    hostile_study(root / "study")
    return made(root, root / "study")


def test_hostile_text_adds_no_tags_and_no_handlers(hostile_page):
    assert not [
        tag
        for tag, _ in hostile_page.tags
        if tag in ("script", "iframe", "object", "embed", "img", "link", "image", "base")
    ]
    # The page's, and that of the first seed's inspector, which has nothing to show.
    assert [tag for tag, _ in hostile_page.tags].count("style") == 1 + 1
    names = {name for _, attributes in hostile_page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_hostile_text_is_shown_as_text(hostile_page):
    texts = hostile_page.texts
    assert hostile_page.text().count("<script>alert(1)</script>") > 10
    assert "{{ 7*7 }}" in hostile_page.text()
    assert "alert(1)" in " ".join(texts[texts.index("Other figures of each step") :])  # a picture's title


def test_links_lead_to_places_in_the_page_and_each_place_has_an_id_of_its_own(hostile_page):
    links = [a[n] for _, a in hostile_page.tags for n in ("href", "src", "xlink:href", "action", "data") if n in a]
    assert links
    assert all(link.startswith("#") for link in links)
    ids = [a["id"] for _, a in hostile_page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in links)


def test_styles_and_clips_load_nothing_from_elsewhere(hostile_page):
    texts = hostile_page.texts
    styles = [a["style"] for _, a in hostile_page.tags if "style" in a] + [texts[texts.index("\n") + 1]]
    assert not [style for style in styles if "http" in style or "@import" in style]
    clips = [a["clip-path"] for _, a in hostile_page.tags if "clip-path" in a]
    ids = [a["id"] for _, a in hostile_page.tags if "id" in a]
    assert all(clip.startswith("url(#") and clip[5:-1] in ids for clip in clips)


def test_text_in_pictures_follows_the_page(tmp_path):
    write_comparison(tmp_path / "study")
    html = report([tmp_path / "study"], tmp_path / "report.html").read_text()
    svg = html[html.index("<svg") :]
    assert "currentColor" in svg
    assert "var(--series-1)" in svg
    assert "#0101" not in svg
    assert "#0202" not in svg
    assert "#000000" not in svg
    assert "<metadata" not in svg


def test_tables_and_headings_can_be_read_out(tmp_path):
    write_comparison(tmp_path / "study")
    page = made(tmp_path, tmp_path / "study")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 4
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert [tag for tag in tags if tag in ("h1", "h2", "h3")][:3] == ["h1", "h2", "h3"]
    assert all(a["role"] == "img" and a["aria-label"] for tag, a in page.tags if tag == "svg")
    assert ("a", {"class": "skip", "href": "#content"}) in page.tags
    assert all(a.get("tabindex") == "0" for _, a in page.tags if a.get("class") in ("scroll", "wide"))


def contrast(one, other):
    """WCAG's, of two colours as #rrggbb."""

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_the_paper(scheme):
    style = (Path(page_module.__file__).parent / "templates/style.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", style.split(":root {")[1 + scheme]))
    assert len(colours) == 16
    for name in ("ink", "quiet", "link"):
        assert min(contrast(colours[name], colours[paper]) for paper in ("paper", "tint")) >= 4.5, name
    assert contrast(colours["warn"], colours["warn-tint"]) >= 4.5
    assert all(contrast(colours[f"series-{number}"], colours["paper"]) >= 3 for number in range(1, 8))
