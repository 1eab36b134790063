"""Event words, and what two events at a time make."""

from __future__ import annotations

import pytest

from harness.x86.events import (
    EXCEPTIONS,
    HAS_ERROR,
    TABLE,
    VALID,
    WITH_ERROR_CODE,
    Class,
    Event,
    Kind,
    Result,
    again,
    class_of,
    decode_event,
    exception,
    merge,
)

DF = exception(8, 0)


def word(kind: int, vector: int, error: int | None = None) -> int:
    return VALID | kind << 8 | vector | (0 if error is None else HAS_ERROR | error << 32)


def delivered(vector: int, error: int = 0x10) -> int:
    """EXITINTINFO of an exception whose delivery did not end."""
    return word(3, vector, error if vector in WITH_ERROR_CODE else None)


def test_the_words_of_the_manual() -> None:
    assert exception(14, 7) == 0x7_8000_0B0E
    assert exception(6, None) == 0x8000_0306
    assert Event(Kind.INTERRUPT, 0x20).encode() == 0x8000_0020
    assert Event(Kind.NMI, 2).encode() == 0x8000_0202
    assert Event(Kind.SOFTWARE, 0x80).encode() == 0x8000_0480


@pytest.mark.parametrize("vector", range(32))
def test_an_error_code_goes_with_its_vectors_only(vector: int) -> None:
    wrong = None if vector in WITH_ERROR_CODE else 0
    with pytest.raises(ValueError, match="error code"):
        exception(vector, wrong)


@pytest.mark.parametrize("vector", [2, 31, 32, 255, 256])
def test_what_vmrun_would_refuse_is_refused(vector: int) -> None:
    with pytest.raises(ValueError, match="vector"):
        exception(vector, None)


@pytest.mark.parametrize("vector", range(256))
def test_an_interrupted_delivery_is_made_again_as_what_it_was(vector: int) -> None:
    """QEMU reports whatever comes from outside as an exception."""
    pending = delivered(vector)
    kind = Kind.NMI if vector == 2 else Kind.EXCEPTION if vector in EXCEPTIONS else Kind.INTERRUPT
    event = decode_event(pending)
    assert event is not None
    assert (event.kind, event.vector, event.error) == (kind, vector, 0x10 if vector in WITH_ERROR_CODE else None)
    assert again(pending) == (pending if kind is Kind.EXCEPTION else word(kind, vector))
    if kind is not Kind.EXCEPTION:
        assert again(again(pending)) == again(pending), "as the monitor injected it, it is reported the next time"


@pytest.mark.parametrize("vector", [3, 4, 8, 14, 0x80])
def test_a_software_interrupt_is_executed_again(vector: int) -> None:
    assert again(word(4, vector)) == 0
    assert again(word(4, vector, 0)) == 0


def test_nothing_pending_is_nothing_again() -> None:
    assert again(0) == 0
    assert again(delivered(14) & ~VALID) == 0
    assert merge(0, 14, 2) == exception(14, 2)


# SDM vol. 3A, table 6-5, written out again: rows are the first event, columns the second.
SDM = {
    "benign": {"benign": "second", "contributory": "second", "page fault": "second"},
    "contributory": {"benign": "second", "contributory": "#DF", "page fault": "second"},
    "page fault": {"benign": "second", "contributory": "#DF", "page fault": "#DF"},
    "double fault": {"contributory": "shutdown", "page fault": "shutdown"},
}
CLASS = {
    **dict.fromkeys(EXCEPTIONS, "benign"),
    **dict.fromkeys((0, 10, 11, 12, 13), "contributory"),
    14: "page fault",
    8: "double fault",
}


@pytest.mark.parametrize("first", sorted(EXCEPTIONS))
def test_every_pair_of_exceptions(first: int) -> None:
    for second in sorted(EXCEPTIONS - {8}):
        error = 0x18 if second in WITH_ERROR_CODE else None
        wanted = SDM[CLASS[first]].get(CLASS[second], "shutdown")
        expected = {"second": exception(second, error), "#DF": DF, "shutdown": None}[wanted]
        assert merge(delivered(first), second, error) == expected, (first, second)


@pytest.mark.parametrize("pending", [word(0, 0x20), word(3, 0x20), word(4, 14), word(4, 13, 0), word(2, 2), word(3, 2)])
def test_what_comes_from_outside_or_from_software_is_benign(pending: int) -> None:
    assert merge(pending, 14, 2) == exception(14, 2)
    assert merge(pending, 13, 0) == exception(13, 0)


def test_a_device_of_a_guest_in_real_mode_is_no_double_fault() -> None:
    event = decode_event(word(3, 8))
    assert event is not None
    assert class_of(event) is Class.BENIGN


def test_the_table_has_every_pair() -> None:
    assert set(TABLE) == {(first, second) for first in Class for second in Class}
    assert {result for (first, _), result in TABLE.items() if first is Class.DOUBLE_FAULT} == {Result.SHUTDOWN}


@pytest.mark.parametrize("kind", [1, 5, 6, 7])
def test_a_type_that_does_not_exist_is_refused(kind: int) -> None:
    with pytest.raises(ValueError, match="Kind"):
        decode_event(word(kind, 3))
