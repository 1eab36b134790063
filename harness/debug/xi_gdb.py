"""Loaded by gdb: `xi walk $rip` for `monitor xi walk 0x...`, one command each (`xi-walk`), and `$xi_gpa(va)`.

It runs inside gdb's own Python and imports nothing of the harness: all it does is to evaluate gdb's expressions and to
hand the line to the session, so the output is that of `monitor xi`.
"""

from __future__ import annotations

import gdb  # type: ignore[import-untyped]  # it exists only inside gdb

_EXPRESSION = ("$", "&", "*", "(")
_NAMES = (
    *("walk", "ranges", "probe", "find", "code", "gpa", "flush", "spti", "backlinks", "snapshot", "pool", "decide"),
    *("events", "diff", "audit", "stats", "dirty"),
)


def _value(word: str) -> str:
    """A word of a command: what begins like an expression of gdb's is evaluated. All else stays as it is, and what gdb
    has no value for: the session knows $rip in 32-bit code too, and says what it does not know."""
    head, equals, tail = word.rpartition("=")
    if not tail.startswith(_EXPRESSION):
        return word
    value = gdb.parse_and_eval(tail)
    if value.type.code == gdb.TYPE_CODE_VOID:
        return word
    return f"{head}{equals}{int(value) & (1 << 64) - 1:#x}"


def _monitor(words: list[str]) -> str:
    text: str = gdb.execute(" ".join(["monitor", "xi", *map(_value, words)]), to_string=True)
    return text


class _Xi(gdb.Command):  # type: ignore[misc]  # gdb is not typed
    """Ask XI: `xi help` lists what, and expressions such as $rip or &symbol are evaluated first."""

    def __init__(self, name: str, first: list[str]) -> None:
        super().__init__(name, gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)
        self._first = first

    def invoke(self, argument: str, from_tty: bool) -> None:
        del from_tty
        gdb.write(_monitor([*self._first, *gdb.string_to_argv(argument)]))


class _Address(gdb.Function):  # type: ignore[misc]
    """$xi_gpa(va) and $xi_mfn(va): where the guest's tables lead, and the machine frame behind it; -1 for nowhere."""

    def __init__(self, name: str, field: str) -> None:
        super().__init__(name)
        self._field = field

    def invoke(self, va: gdb.Value) -> int:
        words = _monitor(["gpa", f"{int(va) & (1 << 64) - 1:#x}"]).split()
        for word in words:
            name, _, value = word.partition("=")
            if name == self._field:
                return int(value, 16)
        return -1


_Xi("xi", [])
for _name in _NAMES:
    _Xi(f"xi-{_name}", [_name])
_Address("xi_gpa", "gpa")
_Address("xi_mfn", "mfn")
