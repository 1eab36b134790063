"""The log of events: all are counted, the last ones are kept."""

from __future__ import annotations

from harness.intercept.events import KEPT, EventLog


def test_every_event_is_counted_and_the_last_ones_are_kept() -> None:
    log = EventLog()
    for number in range(KEPT + 10):
        log.add("invlpg" if number % 2 else "page_fault", 0x1000 + number, number)
    assert log.total == KEPT + 10
    assert log.counts == {"page_fault": KEPT // 2 + 5, "invlpg": KEPT // 2 + 5}
    kept = log.last()
    assert [event.index for event in kept] == list(range(10, KEPT + 10)) == [event.value for event in kept]
    assert [event.index for event in log.last(3)] == [KEPT + 7, KEPT + 8, KEPT + 9]


def test_an_event_is_told_on_a_line() -> None:
    log = EventLog()
    log.add("cr3_load", 0x8000, 0x3000, "mov cr3, rax")
    log.add("table_write", 0, 5)
    assert log.recent() == ["#0 cr3_load cr3=0x3000 at 0x8000  mov cr3, rax", "#1 table_write gfn=0x5"]


def test_a_new_log_is_empty() -> None:
    log = EventLog()
    assert (log.total, log.last()) == (0, [])
