"""A size is HEIGHTxWIDTH, in one parser."""

from __future__ import annotations

import pytest

from vidchat.runtime.errors import user_message
from vidchat.runtime.sizes import format_size, parse_size


def test_the_height_comes_first() -> None:
    assert parse_size("480x768") == (480, 768)
    assert format_size((480, 768)) == "480x768"


@pytest.mark.parametrize(
    "text", ["", "480", "x768", "480x", "0x768", "480x-1", "480X768", "480 x 768", "4.8x7", "1x2x3"]
)
def test_anything_else_is_refused_with_what_a_size_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="HEIGHTxWIDTH") as caught:
        parse_size(text)
    assert user_message(caught.value) is not None
