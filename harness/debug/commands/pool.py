"""`pool`: the engine's shadow memory, and who has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.debug.commands.arguments import split
from harness.debug.commands.command import Command
from harness.debug.commands.health import failure_lines
from harness.debug.commands.text import MARK, columns, plural
from harness.debug.commands.told import explains
from harness.debug.scene import Scene

_RULES: Final = frozenset(("pool-conservation", "pool-owner", "pool-order", "zeroed-is-zero", "H1", "orphans", "root"))


def _pool(scene: Scene, arguments: Sequence[str]) -> str:
    split(arguments)
    record = explains(scene).describe_pool()
    clean, unclean = record["clean"], record["unclean"]
    last = record["base_mfn"] + record["frames"] - 1
    used = f"{record['in_use']}{_elsewhere(record)}"
    lines = [
        f"{record['sptis']} SPTIs of 4 frames, mfn {record['base_mfn']:#x}-{last:#x}; "
        f"fill={record['fill']}, zeroing={record['zeroing']}",
        f"  in use {used}, free {clean + unclean}: {clean} zeroed and {unclean} not yet",
        f"  root in use: {'none yet' if record['root'] is None else 'SPTI {root}'.format(**record)}; "
        f"{plural(record['orphans'], 'orphan')}, which nothing leads to (recycled first)",
        f"  idle moments recycle below {record['low_water']} free: orphans, and to keep {record['reserve']} others too",
        f"  {', '.join(f'{name} {count}' for name, count in record['counters'].items())}",
        "",
    ]
    headings = ("table", "mode", "level", "SPTIs", "synced", "unsynced", "fresh", "SPTEs")
    groups = [[str(cell) for cell in group] for group in record["groups"]]
    lines += (
        columns(headings, groups, right="level SPTIs synced unsynced fresh SPTEs")
        if groups
        else ["  no SPTI is in use"]
    )
    if record["next"]:
        lines += ["", "  next to be recycled, in this order"]
        rows = [
            (str(one["spti"]), one["role"], one["state"], str(one["sptes"]), str(one["parents"]))
            for one in record["next"]
        ]
        lines += columns(("SPTI", "shadows", "state", "SPTEs", "parents"), rows, right="SPTI SPTEs parents")
    wrong = [failure for failure in scene.engine.audit() if failure.invariant in _RULES]
    return "\n".join(lines + failure_lines(wrong))


def _elsewhere(record: Mapping[str, Any]) -> str:
    if not record["neighbours"]:
        return ""
    return f", by {plural(record['neighbours'], 'other domain')} {record['elsewhere']}"


_HELP: Final = f"""\
An SPTI is the record of one shadow table and owns four frames: SPT, snapshot, two of backlinks. table: guest, the
shadow of a guest table; direct, the pieces of a large page, or the map of a guest without paging; quadrants and
unpaged, roots above those. synced, unsynced: in and out of sync with that; fresh: not synchronised yet.
The root in use and the tables on a path being built are passed over when recycling. zeroed_inline counts SPTIs that
were cleared while the guest waited, recycled those taken from a table in use.
{MARK} stands before an invariant of the pool that does not hold."""

COMMANDS: Final = (Command("pool", "", "shadow memory: free, in use, next to be recycled", _HELP, _pool),)
