"""Text that came from a guest, a process or a file name, made safe for a terminal and for XML."""

from __future__ import annotations

from typing import Final

_KEPT: Final = frozenset("\n\t")


def printable(text: str, keep: frozenset[str] = _KEPT) -> str:
    """`text` with every character that is not printable written as an escape (``\\x1b``).

    A hostile guest's console may hold terminal escapes: they are shown, never obeyed. `keep` holds the control
    characters that stay as they are. What is left is also legal in XML 1.0 (its section 2.2 forbids most
    control characters, and lone surrogates).
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or c.isprintable() else _escape(c) for c in text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` on one line of at most `limit` characters, white space folded, made `printable`."""
    line = printable(" ".join(text.split()), frozenset())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def duration(seconds: float) -> str:
    """Seconds for people: ``0.42 s``, ``12.3 s``, ``2 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
