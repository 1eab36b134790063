"""The words after a command of `monitor xi`, read as what they mean: addresses, frames, accesses, numbers.

Everything here raises Misused with one line that quotes what cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

import numpy as np

from harness.debug.commands.views import gfns_of
from harness.debug.scene import CommandError, Scene
from harness.x86.access import USER_BIT, Access
from harness.x86.bits import PAGE_SHIFT

_ADDRESSES: Final = 1 << 64
_SUM: Final = re.compile(r"(.+?)([+-](?:0[xX][0-9a-fA-F_]+|[0-9]+))?$")
_KINDS: Final = {"r": Access.LOAD, "w": Access.STORE, "x": Access.FETCH}
_RINGS: Final = {"u": USER_BIT, "s": 0}


class Misused(CommandError):
    """The arguments are wrong; whoever runs the command adds its usage."""


@dataclass(frozen=True, slots=True)
class Words:
    """Arguments apart: plain words in their order, and those of the form ``name=value``."""

    plain: tuple[str, ...]
    named: dict[str, str]


def split(arguments: Sequence[str], names: Collection[str] = (), least: int = 0, most: int = 0) -> Words:
    """Takes `arguments` apart: `least` to `most` plain words, and ``name=value`` for `names`, each at most once."""
    plain: list[str] = []
    named: dict[str, str] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals:
            plain.append(word)
        elif name not in names:
            raise Misused(f"{name}= means nothing here{_maybe(name, names)}")
        elif name in named:
            raise Misused(f"{name}= is there twice")
        elif not value:
            raise Misused(f"{name}= has no value")
        else:
            named[name] = value
    if len(plain) > most:
        raise Misused(f"{plain[most]!r} is one word too many")
    if len(plain) < least:
        raise Misused("something is missing" if plain or named else "it needs arguments")
    return Words(tuple(plain), named)


def number(text: str, least: int = 0, most: int = _ADDRESSES - 1) -> int:
    """A decimal number, or a hexadecimal one with 0x, between `least` and `most`."""
    try:
        value = int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        hint = f": 0x{text}?" if re.fullmatch(r"[0-9a-fA-F]+", text) else ""
        raise Misused(f"{text!r} is no number{hint}") from None
    if not least <= value <= most:
        raise Misused(f"{text} is not between {_text(least)} and {_text(most)}")
    return value


def address(scene: Scene, text: str) -> int:
    """A 64-bit address: a number, ``$register``, a symbol of the guest, or one of the last two ``+`` or ``-`` a number.

    Negative numbers count from the top, so that ``-0x1000`` is the last page; sums wrap around.
    """
    if text[:1] == "-":
        return _ADDRESSES - number(text[1:], 1)
    match = _SUM.fullmatch(text)
    if match is None:
        raise Misused("an address is empty")
    start, offset = match[1], match[2]
    value = _named(scene, start)
    if offset:
        distance = number(offset[1:])
        value += distance if offset[0] == "+" else -distance
    return value % _ADDRESSES


def _named(scene: Scene, text: str) -> int:
    if text[0].isdigit():
        return number(text)
    if text[0] == "$":
        name = text[1:].lower()
        if name == "pc":
            name = "rip"
        if name not in scene.registers:
            raise Misused(f"no register {text}{_maybe(name, scene.registers, '$')}")
        return scene.registers[name]
    if text in scene.symbols:
        return scene.symbols[text]
    if re.fullmatch(r"[0-9a-fA-F]+", text):
        raise Misused(f"no symbol {text!r}; for the number write 0x{text}")
    raise Misused(f"no symbol {text!r} in the guest{_maybe(text, scene.symbols)}")


def frame(text: str) -> int:
    """A frame number (gfn or mfn)."""
    return number(text, 0, (1 << 52) - 1)


def gfn_of(scene: Scene, words: Words) -> int:
    """The guest frame that ``gfn=``, ``mfn=``, ``pa=`` (guest-physical) or else the one plain word (a gfn) names.

    An mfn is translated by the guest's p2m; one that is not the guest's is refused.
    """
    given = [name for name in ("gfn", "mfn", "pa") if name in words.named]
    if len(given) + len(words.plain) != 1:
        raise Misused("it needs one frame, and just one")
    if words.plain:
        return frame(words.plain[0])
    text = words.named[given[0]]
    if given[0] == "pa":
        return address(scene, text) >> PAGE_SHIFT
    value = frame(text)
    return value if given[0] == "gfn" else guest_frame(scene, value)


def guest_frame(scene: Scene, mfn: int) -> int:
    """The gfn whose machine frame `mfn` is. Raises CommandError where it is not the guest's."""
    gfn = int(gfns_of(scene, np.asarray([mfn], np.int64))[0])
    if gfn >= 0:
        return gfn
    raise CommandError(f"machine frame {mfn:#x} is not the guest's: no gfn has it")


def span(scene: Scene, text: str) -> tuple[int, int]:
    """``A:B``, two addresses: from A up to B, B not included."""
    first, colon, last = text.partition(":")
    if not colon or not first or not last:
        raise Misused(f"{text!r} is no range A:B")
    begin, end = address(scene, first), address(scene, last)
    if begin >= end:
        raise Misused(f"the range {text} is empty")
    return begin, end


def access(words: Sequence[str]) -> Access:
    """``r``, ``w`` or ``x`` (default ``r``) and ``u`` or ``s`` (default ``s``), in any order or in one word."""
    kind: Access | None = None
    ring: int | None = None
    for letter in "".join(words):
        if letter in _KINDS and kind is None:
            kind = _KINDS[letter]
        elif letter in _RINGS and ring is None:
            ring = _RINGS[letter]
        else:
            raise Misused(f"{' '.join(words)!r} is no access: one of r w x, and one of u s")
    return Access((Access.LOAD if kind is None else kind) | (ring or 0))


def _maybe(text: str, known: Collection[str], prefix: str = "") -> str:
    close = get_close_matches(text, known, n=3)
    return f"; perhaps {' or '.join(prefix + one for one in close)}?" if close else ""


def _text(value: int) -> str:
    return str(value) if value < 4096 else hex(value)
