"""What vidchat imports at the head of a file comes with a plain installation; what an extra brings is imported late."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

ROOT = Path(__file__).parents[1]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def hard() -> set[str]:
    """The declared dependencies and what each of them requires itself, extras left out."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {name_of(requirement) for requirement in declared}
    for name in sorted(names):
        names |= {name_of(other) for other in requires(name) or [] if "extra ==" not in other}
    return names


def heads(tree: ast.Module) -> Iterator[str]:
    """Top-level packages that importing a module imports."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_importing_vidchat_needs_no_extra() -> None:
    known, distributions = hard(), packages_distributions()
    for path in sorted((ROOT / "vidchat").rglob("*.py")):
        for package in set(heads(ast.parse(path.read_text()))) - sys.stdlib_module_names - {"vidchat"}:
            names = {name_of(name) for name in distributions.get(package, [])}
            assert names & known, f"{path.relative_to(ROOT)} imports {package}, which a plain installation may lack"


def test_each_extra_is_named_where_it_is_missing() -> None:
    """A declared package that is imported nowhere is named in an error or serves the tests."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    source = "".join(path.read_text() for path in (ROOT / "vidchat").rglob("*.py"))
    for extra in set(extras) - {"dev", "encodec", "flash"}:
        assert f"vidchat[{extra}]" in source, f"no error says: pip install 'vidchat[{extra}]'"
