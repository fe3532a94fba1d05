"""Fills templates: HTML pages that need no server and no other files than the clips they show."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Returns a page as HTML; values are escaped, and a value that the template needs but lacks is an `UndefinedError`.

    Args:
        template: Name of a file in `templates`, such as "bench.html".
        values: Plain values by their names in the template.
    """
    return _environment().get_template(template).render(values)


def data_url(content: bytes, media_type: str) -> str:
    """Returns a file's content as a URL, so that the page needs no other files.

    Args:
        content: Bytes of the file.
        media_type: Media type of the file, such as "video/mp4".
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("vidchat.reports"), undefined=StrictUndefined, **options)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return environment
