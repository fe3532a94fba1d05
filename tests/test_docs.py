"""Every name in backticks in the documentation exists: a path as a file, an identifier in the code, a command."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc import locate

import pytest
from typer.main import get_command

from vidchat.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(
        path for pattern in ("docs/**/*.md", "checkpoints/**/*.md", "examples/*.md") for path in ROOT.glob(pattern)
    ),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]  # CHANGELOG.md tells of names that are no more
FOLDERS = ("vidchat", "configs", "tests", "benchmarks", "docs", "examples")
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
SUFFIXES = (".py", ".yaml", ".toml", ".j2", ".ipynb")
WORDS = {
    word
    for path in [*CODE, *ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    if (path.suffix in SUFFIXES or path.name == "Makefile") and path != Path(__file__)
    for word in re.findall(r"[A-Za-z_]\w*", path.read_text(encoding="utf-8"))
}
PATH = re.compile(r"[\w.-]*(/[\w.-]+)+/?|[\w-]+\.(py|yaml|md)")
NAME = re.compile(r"\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?")
KEY = re.compile(r"[+]?[a-z_]\w*(\.\w+)*=")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z0-9_]*\b")
"""Words such as DATA in `vidchat data stats DATA`, which a reader replaces."""


def spans(page: Path) -> list[str]:
    """Text in single backticks; blocks of code are left out."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    return [span.strip() for span in re.findall(r"`([^`]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_in_backticks_exists(page: Path) -> None:
    missing = [span for span in spans(page) if not exists(span, page)]
    assert not missing


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    inside = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert not [link for link in inside if not (page.parent / link).exists()]


def exists(span: str, page: Path) -> bool:
    if PATH.fullmatch(span) and not PLACEHOLDER.search(span):
        return named(span, page) or any((folder / span).exists() for folder in (ROOT, ROOT / "vidchat", page.parent))
    if KEY.match(span):
        return named(span.partition("=")[0], page)
    if NAME.fullmatch(span):
        return named(span, page) or locate(span) is not None
    return not span.startswith("vidchat ") or is_command(span.split()[1:])


def named(span: str, page: Path) -> bool:
    """Whether the code, the page's own blocks included, holds every part of a dotted name or the last of a path."""
    blocks = " ".join(re.findall(r"```.*?```", page.read_text(encoding="utf-8"), flags=re.S))
    known = WORDS | set(re.findall(r"[A-Za-z_]\w*", blocks))
    words = re.findall(r"[A-Za-z_]\w*", span.rstrip("/").rpartition("/")[2])
    return all(word in known or PLACEHOLDER.fullmatch(word) for word in words)


def is_command(words: list[str]) -> bool:
    """Whether the leading words name a command, such as `data stats`; alternatives are written `ingest | branches`."""
    commands = [get_command(app)]
    for word in words:
        if word == "|":
            continue
        if word.startswith("-") or "=" in word:
            return True
        groups = [command.commands for command in commands if hasattr(command, "commands")]
        if not groups:
            return True
        following = [group[word] for group in groups if word in group]
        if not following:
            return PLACEHOLDER.fullmatch(word) is not None or any(word in parent for parent in groups)
        commands = [*following, *(commands if "|" in words else [])]
    return True


def test_a_stale_name_is_found() -> None:
    page = ROOT / "docs" / "design.md"
    assert exists("Responder.loss", page)
    assert not exists("Responder._inputs_of_old", page)
    assert not exists("model.no_such_key=true", page)
    assert not exists("vidchat data statz", page)
    assert not exists("model/no_such_file.py", page)
