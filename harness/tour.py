"""The tour: each guest of the catalogue once, so that a newcomer sees all of it in a short time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.catalogue import Guest

TAG: Final = "tour-"  # a tag `tour-pae` says that pae shows best what the guest is about


def tour(guests: Iterable[Guest]) -> list[tuple[Guest, str]]:
    """One (guest, paging mode) for each guest, in the catalogue's order.

    The mode is the one that a tag names; guests without such a tag take turns through their modes, so that
    the tour as a whole visits every mode.
    """
    stops = []
    for turn, guest in enumerate(guests):
        named = [tag.removeprefix(TAG) for tag in guest.tags if tag.startswith(TAG)]
        stops.append((guest, named[0] if named else guest.modes[turn % len(guest.modes)]))
    return stops
