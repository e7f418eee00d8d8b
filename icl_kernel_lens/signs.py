"""Makes texts of a data set fit to be shown: what a page or a picture cannot hold is drawn as a sign that can be seen.

Control characters become Unicode's pictures of them (U+0000 is ␀), what Unicode gives no meaning (half of a surrogate pair,
U+FFFE) its escape (\\ud800). Line breaks and tabs stay. Stored results hold texts as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ILLEGIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def legible(value: Any) -> Any:
    """A text, or all texts within lists and mappings, fit to be shown; the value itself where nothing is amiss."""
    if isinstance(value, str):
        return type(value)(_ILLEGIBLE.sub(_sign, value)) if _ILLEGIBLE.search(value) else value
    if isinstance(value, Mapping):
        return {legible(key): legible(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [legible(one) for one in value]
    return value


def _sign(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x20:
        return chr(0x2400 + number)
    return "\u2421" if number == 0x7F else f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
