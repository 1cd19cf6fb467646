"""Text that came from elsewhere, made safe to show.

A file name may hold anything but NUL and a slash: escape sequences move a terminal's
cursor, and bytes that are no UTF-8 cannot be written at all.
"""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    r"""Write what is not printable as ``\x1b``, ``\u202e``; a byte that is no UTF-8 as ``\xff``.

    Args:
        text: as it came.
        keep: characters that stay although they are not printable.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: an undecodable byte in a file name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else char.encode("unicode_escape").decode()
