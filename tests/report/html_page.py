"""A page as a browser sees it: its tags, its text, and what it would load."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
# An address in one of these makes a browser fetch something, or a click leave the page.
ADDRESSES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}


@dataclass
class Page:
    text: str = ""
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)
    styles: str = ""

    @property
    def loads(self) -> list[str]:
        """Addresses outside the page itself."""
        found = [value for _, name, value in self.attributes if name in ADDRESSES]
        css = self.styles + " ".join(value for _, name, value in self.attributes if name == "style")
        found += re.findall(r"url\(\s*['\"]?([^'\")]*)", css) + re.findall(r"@import[^;]*", css)
        return [address for address in found if not address.startswith(("data:image/png;base64,", "#"))]

    def values(self, name: str) -> list[str]:
        return [value for _, each, value in self.attributes if each == name]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.page.tags.append(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.page.tags.append(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        self.page.text += " "
        if not self._open or self._open.pop() != tag:
            self.page.unclosed.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.page.styles += data
        elif not (self._open and self._open[-1] == "script"):
            self.page.text += data

    def close(self):
        super().close()
        self.page.unclosed += self._open


def parse(html: str) -> Page:
    parser = _Parser()
    parser.feed(html)
    parser.close()
    parser.page.text = " ".join(parser.page.text.split())
    return parser.page
