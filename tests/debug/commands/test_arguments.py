"""What the words after a command may be."""

from __future__ import annotations

import pytest

from harness.debug.commands.arguments import Misused, access, address, gfn_of, number, span, split
from harness.debug.scene import CommandError
from harness.x86.access import Access
from tests.debug.commands.scene import CODE, DATA, KERNEL, MFN_OF_GFN_0, long4, nopae

TOP = 1 << 64


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x1000", 0x1000),
        ("0XfF", 0xFF),
        ("4096", 4096),
        ("start", CODE),
        ("counter+8", DATA + 0x48),
        ("counter-0x40", DATA),
        ("kernel_map+0x1000", KERNEL + 0x1000),
        ("$rip", CODE),
        ("$pc+1", CODE + 1),
        ("$RSP-0xff0", DATA),
        ("$cr3", 0x2000),
        ("-0x1000", TOP - 0x1000),
        ("-1", TOP - 1),
        ("0xffffffffffffffff+1", 0),
        ("0-1", TOP - 1),
        ("1_000", 1000),
    ],
)
def test_addresses(text: str, value: int) -> None:
    assert address(long4().scene(), text) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("0x", "no number"),
        ("12ab", "0x12ab"),
        ("ff00", "write 0xff00"),
        ("$foo", r"no register \$foo"),
        ("$rop", r"perhaps .*\$rip"),
        ("contour", "perhaps counter"),
        ("xyzzy", "no symbol 'xyzzy' in the guest$"),
        ("0x10000000000000000", "is not between 0 and 0xffffffffffffffff"),
        ("start+", "no symbol 'start\\+'"),
        ("-", "no number"),
        ("$", "no register"),
    ],
)
def test_what_is_no_address_says_why(text: str, told: str) -> None:
    with pytest.raises(Misused, match=told):
        address(long4().scene(), text)


def test_numbers_have_bounds() -> None:
    assert number("0x10", 1, 16) == 16
    for text in ("0", "17", "-1"):
        with pytest.raises(Misused, match="is not between 1 and 16"):
            number(text, 1, 16)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], Access.LOAD),
        (["r"], Access.LOAD),
        (["w"], Access.STORE),
        (["x", "u"], Access.USER_FETCH),
        (["u", "w"], Access.USER_STORE),
        (["u"], Access.USER_LOAD),
        (["ws"], Access.STORE),
        (["s"], Access.LOAD),
    ],
)
def test_accesses(words: list[str], wanted: Access) -> None:
    assert access(words) is wanted


@pytest.mark.parametrize("words", [["r", "w"], ["u", "s"], ["rr"], ["W"], ["load"]])
def test_what_is_no_access(words: list[str]) -> None:
    with pytest.raises(Misused, match="is no access"):
        access(words)


def test_frames_by_any_name() -> None:
    scene = long4().scene()

    def gfn(*words: str) -> int:
        return gfn_of(scene, split(words, ("gfn", "mfn", "pa"), most=1))

    assert gfn("0x102") == gfn("gfn=0x102") == gfn("pa=0x102fff") == gfn(f"mfn={0x102 + MFN_OF_GFN_0}") == 0x102
    with pytest.raises(CommandError, match="no gfn has it"):
        gfn("mfn=1")
    with pytest.raises(Misused):
        gfn("1", "gfn=1")
    observed = nopae().scene()
    assert gfn_of(observed, split(["mfn=5"], ("mfn",))) == 5
    with pytest.raises(CommandError, match="not the guest's"):
        gfn_of(observed, split(["mfn=0x10000"], ("mfn",)))


def test_ranges_end_behind_where_they_begin() -> None:
    scene = long4().scene()
    assert span(scene, "start:counter+0x40") == (CODE, DATA + 0x80)
    assert span(scene, "0:-1") == (0, TOP - 1)
    for text in ("5", ":5", "5:", "5:5"):
        with pytest.raises(Misused):
            span(scene, text)


def test_words_are_taken_apart() -> None:
    words = split(["a", "n=1", "b"], ("n", "m"), least=1, most=2)
    assert (words.plain, words.named) == (("a", "b"), {"n": "1"})
    for arguments in (["a", "b", "c"], [], ["a", "n=1", "n=2"], ["a", "o=1"], ["a", "n="]):
        with pytest.raises(Misused):
            split(arguments, ("n", "m"), least=1, most=2)
