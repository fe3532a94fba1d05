"""A strict parser of HTML pages."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "input", "hr", "img", "link"}


class Parsed(HTMLParser):
    """A parsed page, whose elements must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        """Returns the values of an attribute, in order."""
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name == attribute]


def checked(page: str) -> Parsed:
    """Parses a page and asserts that ids are unique, links lead to ids, and every element is closed."""
    parsed = Parsed()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in parsed.values("href")} <= set(ids)
    return parsed
