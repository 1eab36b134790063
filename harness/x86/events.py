"""Events that are put into a guest: EVENTINJ and EXITINTINFO, and what two of them at a time make.

Both words have one format (AMD APM vol. 2, 15.20 and 15.7.2): vector in bits 7:0, type in 10:8, whether there is an
error code in 11, valid in 31, the error code in 63:32. A guest leaves in the middle of a delivery when a page of its
stack, its IDT or its GDT is not in the shadow yet; EXITINTINFO tells the event, which the monitor must not lose.
Sources of the rules: Intel SDM vol. 3A, 6.15 (#DF, tables 6-4 and 6-5); AMD APM vol. 2, 8.2.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

VALID: Final = 1 << 31
HAS_ERROR: Final = 1 << 11

VECTOR_DE: Final = 0
VECTOR_NMI: Final = 2
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_AC: Final = 17

WITH_ERROR_CODE: Final = frozenset((VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF, VECTOR_AC))
# Exceptions that QEMU's processors (7.2) raise; any other vector comes from a device or an INT n.
EXCEPTIONS: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19))

# What the delivery of an event can raise beside #PF. Live mode intercepts them: QEMU (7.2) forgets that it is
# delivering an event that was injected, and would deliver the second one where #DF is due.
FAULTS_OF_DELIVERY: Final = (VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP)


class Kind(IntEnum):
    """Bits 10:8."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE = 4


@dataclass(frozen=True, slots=True)
class Event:
    """One event. error: its error code, None if it pushes none."""

    kind: Kind
    vector: int
    error: int | None = None

    def encode(self) -> int:
        """As EVENTINJ takes it. Raises ValueError for what makes VMRUN fail (APM vol. 2, 15.20)."""
        if not 0 <= self.vector < 256:
            raise ValueError(f"vector {self.vector} is not one of 0..255")
        if self.kind is Kind.EXCEPTION and (self.vector == VECTOR_NMI or self.vector > 30):  # QEMU 7.2 refuses 31 too
            raise ValueError(f"vector {self.vector} cannot be injected as an exception")
        word = VALID | self.kind << 8 | (VECTOR_NMI if self.kind is Kind.NMI else self.vector)
        if self.error is not None:
            word |= HAS_ERROR | (self.error & 0xFFFF_FFFF) << 32
        return word


def decode_event(word: int) -> Event | None:
    """The event in EXITINTINFO (or EVENTINJ) as it really was; None if there is none.

    QEMU (7.2) reports external interrupts and NMIs as exceptions: told apart by the vector. Raises ValueError for a
    type that neither manual nor QEMU has.
    """
    if not word & VALID:
        return None
    vector, kind = word & 0xFF, Kind(word >> 8 & 7)
    if kind is Kind.EXCEPTION:
        if vector == VECTOR_NMI:
            kind = Kind.NMI
        elif vector not in EXCEPTIONS:
            kind = Kind.INTERRUPT
    # An INT n of an exception's vector is reported with an error code, which it does not push.
    has_error = bool(word & HAS_ERROR) and kind is Kind.EXCEPTION and vector in WITH_ERROR_CODE
    return Event(kind, vector, word >> 32 & 0xFFFF_FFFF if has_error else None)


def exception(vector: int, error: int | None) -> int:
    """EVENTINJ for an exception. For #PF the caller writes CR2 as well: injection does not (APM vol. 2, 15.20).

    Raises ValueError for an error code with a vector that has none, or none with one that has.
    """
    if (error is not None) != (vector in WITH_ERROR_CODE):
        raise ValueError(f"exception {vector} {'has no' if error is not None else 'needs an'} error code")
    return Event(Kind.EXCEPTION, vector, error).encode()


def again(pending: int) -> int:
    """EVENTINJ that makes the interrupted delivery `pending` (EXITINTINFO) happen after all.

    0 for a software interrupt: RIP is still at the INT, which is executed again; injected, QEMU (7.2) would push the
    address of the INT instead of that of the next instruction.
    """
    event = decode_event(pending)
    return 0 if event is None or event.kind is Kind.SOFTWARE else event.encode()


class Class(Enum):
    """SDM vol. 3A, table 6-4."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    PAGE_FAULT = "page fault"
    DOUBLE_FAULT = "double fault"


class Result(Enum):
    """What comes of an exception while another event is being delivered."""

    SECOND = "the second is delivered"
    DOUBLE_FAULT = "#DF"
    SHUTDOWN = "shutdown"


_CLASSES: Final = {
    **dict.fromkeys((VECTOR_DE, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP), Class.CONTRIBUTORY),
    VECTOR_PF: Class.PAGE_FAULT,
    VECTOR_DF: Class.DOUBLE_FAULT,
}

# (class of the event being delivered, class of the exception) -> what comes of it. SDM vol. 3A, table 6-5; for the last
# rows it speaks of a contributory exception and a page fault only, QEMU (7.2, check_exception) shuts down at any.
TABLE: Final = {
    (Class.BENIGN, Class.BENIGN): Result.SECOND,
    (Class.BENIGN, Class.CONTRIBUTORY): Result.SECOND,
    (Class.BENIGN, Class.PAGE_FAULT): Result.SECOND,
    (Class.BENIGN, Class.DOUBLE_FAULT): Result.SECOND,
    (Class.CONTRIBUTORY, Class.BENIGN): Result.SECOND,
    (Class.CONTRIBUTORY, Class.CONTRIBUTORY): Result.DOUBLE_FAULT,
    (Class.CONTRIBUTORY, Class.PAGE_FAULT): Result.SECOND,
    (Class.CONTRIBUTORY, Class.DOUBLE_FAULT): Result.SECOND,
    (Class.PAGE_FAULT, Class.BENIGN): Result.SECOND,
    (Class.PAGE_FAULT, Class.CONTRIBUTORY): Result.DOUBLE_FAULT,
    (Class.PAGE_FAULT, Class.PAGE_FAULT): Result.DOUBLE_FAULT,
    (Class.PAGE_FAULT, Class.DOUBLE_FAULT): Result.SECOND,
    (Class.DOUBLE_FAULT, Class.BENIGN): Result.SHUTDOWN,
    (Class.DOUBLE_FAULT, Class.CONTRIBUTORY): Result.SHUTDOWN,
    (Class.DOUBLE_FAULT, Class.PAGE_FAULT): Result.SHUTDOWN,
    (Class.DOUBLE_FAULT, Class.DOUBLE_FAULT): Result.SHUTDOWN,
}


def class_of(event: Event) -> Class:
    """Interrupts, NMIs and INT n are benign, whatever their vector.

    So is an "exception" without the error code that its vector has: in real mode none is told, and there the vectors of
    a PC's devices (8 to 15) are those of exceptions.
    """
    if event.kind is not Kind.EXCEPTION or (event.vector in WITH_ERROR_CODE and event.error is None):
        return Class.BENIGN
    return _CLASSES.get(event.vector, Class.BENIGN)


def merge(pending: int, vector: int, error: int | None) -> int | None:
    """EVENTINJ for exception `vector`, raised while `pending` (EXITINTINFO, not valid: nothing) was being delivered.

    None: the processor shuts down. The first event is never delivered again: a benign one is lost to the fault of
    its own delivery, as on silicon (an INT is executed again after the handler, since RIP still points to it).
    """
    second = Event(Kind.EXCEPTION, vector, error)
    first = decode_event(pending)
    result = Result.SECOND if first is None else TABLE[class_of(first), class_of(second)]
    if result is Result.SHUTDOWN:
        return None
    return exception(vector, error) if result is Result.SECOND else exception(VECTOR_DF, 0)
