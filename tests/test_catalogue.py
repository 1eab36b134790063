"""The catalogue of guests: what is in it, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue import load_catalogue, select
from harness.x86.modes import PAGED_MODES


def test_every_guest_of_the_catalogue_is_built_for_every_paged_mode_that_it_names() -> None:
    catalogue = load_catalogue()
    assert {"basic", "unpaged", "large", "alias", "switch", "perm", "ad", "stale", "churn"} <= catalogue.keys()
    known = {mode.name for mode in PAGED_MODES}
    for guest in catalogue.values():
        assert set(guest.modes) <= known
        assert guest.description


def test_selection_keeps_the_catalogue_s_order_and_says_what_is_known() -> None:
    runs = select(["basic", "ad", "basic"], ["pae", "long4"])
    assert [(guest.name, mode) for guest, mode in runs] == [
        ("basic", "pae"),
        ("basic", "long4"),
        ("ad", "pae"),
        ("ad", "long4"),
    ]
    with pytest.raises(ValueError, match=r"unknown guest 'basik' \(known: basic, "):
        select(["basik"], [])
    with pytest.raises(ValueError, match=r"unknown paging mode 'long6' \(known: nopae, "):
        select(["basic"], ["long6"])


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('name = "x"\nmodes = ["long4"]\nspeed = 3', "guest x: unknown field 'speed'"),
        ('name = "x"\nmodes = "long4"', "guest x: field 'modes' has the wrong type"),
        ('name = "x"\nmodes = ["long6"]', "guest x: unknown paging mode 'long6'"),
        ('name = "x"\nmodes = ["pae"]\nexpected = "fine"', "guest x: unknown verdict 'fine'"),
        ('modes = ["pae"]', "needs at least a name"),
        ("name = ", "guests.toml"),
    ],
)
def test_a_wrong_row_is_named(row: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "guests.toml"
    path.write_text(f"[[guest]]\n{row}\n")
    with pytest.raises(ValueError, match=complaint):
        load_catalogue(path)


def test_overrides_apply_to_their_mode_only(tmp_path: Path) -> None:
    path = tmp_path / "guests.toml"
    path.write_text(
        '[[guest]]\nname = "x"\nmodes = ["pae", "long4"]\n[guest.mode.pae]\nexpected = "crash"\ntime_limit = 3\n'
    )
    guest = load_catalogue(path)["x"]
    assert (guest.expected_for("pae"), guest.expected_for("long4")) == ("crash", "pass")
    assert (guest.time_limit_for("pae"), guest.time_limit_for("long4")) == (3.0, 30.0)
