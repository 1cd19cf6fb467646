"""Numbers as the kernel writes them."""

from __future__ import annotations

import re

_DIGITS = {10: re.compile(r"[0-9]{1,20}"), 16: re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}")}
_LIMIT = 1 << 64


def parse_u64(text: str, base: int = 10) -> int | None:
    """The unsigned 64-bit number that ``text`` is in base 10 or 16; None if it is none.

    Not ``int()``, which takes signs, blanks, underscores, other scripts' digits, and, until
    Python 3.11 at a quadratic price, thousands of digits.
    """
    if _DIGITS[base].fullmatch(text) is None:
        return None
    number = int(text, base)
    return number if number < _LIMIT else None
