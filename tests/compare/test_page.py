from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.compare.measurement import Left
from harness.compare.page import document, write_page
from harness.compare.verdicts import verdicts
from tests.compare.made import comparison

EMPTY = replace(comparison(), measurements=(), domains=())  # and so no pictures, which take their time


class Text(HTMLParser):
    """The text of a page, its table cells, and every address that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page() -> str:
    return document(comparison())


def test_it_stands_alone(page: str) -> None:
    parsed = Text(page)
    assert parsed.loads == []
    assert not parsed.tags & {"script", "link", "img", "iframe"}
    assert "@import" not in page


def test_every_verdict_is_there(page: str) -> None:
    text = Text(page).text
    told = verdicts(comparison())
    assert told
    for verdict in told:
        assert " ".join(verdict.text.split()) in text
    assert "It holds." in text


def test_tables_have_the_numbers_of_the_terminal(page: str) -> None:
    cells = re.findall(r"<td[^>]*>([^<]*)", page)
    assert "shadow_fault" in cells and "write_protect" in cells
    assert "8.00×" in cells  # the work of xen302's faults
    assert "10.00×" in cells  # and their time


def test_the_pictures_are_in_it(page: str) -> None:
    assert page.count("<svg") == 6
    assert 'id="fault-cost"' in page


def test_what_was_typed_is_escaped() -> None:
    page = document(replace(EMPTY, command="xi-harness compare --engines '<b>x'"))
    assert "&lt;b&gt;x" in page and "<b>x" not in page


def test_what_was_left_is_told() -> None:
    wrong = Left("kvm", "faults", "0x1000 is elsewhere", True)
    missing = Left("every engine", "trace:basic/pae", "no QEMU", False)
    text = Text(document(replace(EMPTY, left=(wrong, missing)))).text
    assert "kvm on faults is wrong: 0x1000 is elsewhere" in text
    assert "every engine on trace:basic/pae: no QEMU" in text


def test_an_interrupted_one_says_so() -> None:
    assert "interrupted" in Text(document(replace(EMPTY, interrupted=True))).text


def test_an_empty_one_is_a_page_too() -> None:
    assert "compared" in document(EMPTY)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "c.html"
    write_page(EMPTY, path)
    assert path.read_text().endswith("</html>\n")
    with pytest.raises(OSError):
        write_page(EMPTY, tmp_path / "none" / "c.html")
