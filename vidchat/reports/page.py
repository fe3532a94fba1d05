"""Fills templates: one HTML page that needs no server, and no other file but the clips it names."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Returns a page as HTML; every value is escaped, and one that the template lacks raises `UndefinedError`.

    Args:
        template: A file of `templates`, such as "bench.html".
        values: Plain values, by the names that stand in the template.
    """
    return _environment().get_template(template).render(values)


def data_url(content: bytes, kind: str) -> str:
    """Returns a file's content as a URL, for a page that is sent alone.

    Args:
        content: The file.
        kind: Its media type, such as "video/mp4".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("vidchat.reports"), undefined=StrictUndefined, **options)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return environment
