"""Prints what the catalogue asks the Makefile to build: one `name|mode|source|definitions|half` a line."""

import sys
import tomllib
from pathlib import Path

MODES = ("nopae", "pae", "long4", "long5")


def image_lines(catalogue: Path) -> list[str]:
    """The lines for every guest and mode of `catalogue`. Raises SystemExit with the reason when it is wrong."""
    lines: list[str] = []
    for guest in tomllib.loads(catalogue.read_text())["guest"]:
        name = guest["name"]
        unknown = set(guest["modes"]) - set(MODES)
        if unknown:
            raise SystemExit(f"{catalogue}: guest {name}: unknown paging mode {', '.join(sorted(unknown))}")
        flags = ",".join(f"-D{definition}" for definition in guest.get("define", [])) or "-"
        for mode in guest["modes"]:
            half = "half32" if guest.get("half32") and mode.startswith("long") else "-"
            lines.append(f"{name}|{mode}|{guest.get('source', name)}|{flags}|{half}")
    return lines


if __name__ == "__main__":
    print("\n".join(image_lines(Path(sys.argv[1]))))
