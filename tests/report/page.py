"""A report as a browser would read it."""

from __future__ import annotations

from html.parser import HTMLParser

from vpretrain.report.page import report


class Page(HTMLParser):
    """What a browser would make of it: tags with attributes, texts, and tables by their captions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.texts, self.tables, self._open = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "caption":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self._open:
            self.tables[data.split(";")[0].split(".")[0].split(",")[0]] = self._rows
        if self._open and self._open[-1] in ("th", "td"):
            self._rows[-1][-1] += data

    def text(self):
        return " ".join(self.texts)


def made(tmp_path, *directories):
    return Page(report(directories, tmp_path / "report.html").read_text(encoding="utf-8"))
