"""From the words of a command line to the jobs they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.engines import check_policies, find_engine
from harness.jobs import Job
from harness.tour import tour
from harness.x86.modes import PAGED_MODES

if TYPE_CHECKING:
    from harness.options import RunOptions

ANY_PAGING: Final = "any"  # a foreign kernel chooses its paging mode itself


def plan(
    guests: Sequence[str], modes: Sequence[str], options: RunOptions, every: bool = False, as_tour: bool = False
) -> list[Job]:
    """The jobs for `guests` x `modes`; with neither, and without `every`, the tour.

    Modes alone mean every guest in those modes. Raises ValueError, one line for the user, for names that
    nobody knows and for wishes that contradict each other.
    """
    jobs = _jobs(guests, modes, options, every, as_tour)
    if options.record is not None and len(jobs) != 1:
        raise ValueError(f"--record keeps the trace of one run, and these are {len(jobs)}: name one guest and --paging")
    return jobs


def _jobs(guests: Sequence[str], modes: Sequence[str], options: RunOptions, every: bool, as_tour: bool) -> list[Job]:
    find_engine(options.engine)
    check_policies(options.engine, options.policies)
    if options.stress and not options.monitored:
        raise ValueError("--stress goes with --mode live or both: an observed guest's frames cannot move")
    if options.kernel is not None:
        return [_kernel_job(guests, modes, options, every or as_tour)]
    if options.append is not None or options.initrd is not None:
        raise ValueError("--append and --initrd go with --kernel")
    from harness.catalogue import load_catalogue, select  # noqa: PLC0415 - `--help` need not read the catalogue

    files = [Path(name) for name in guests if "/" in name or name.endswith(".elf")]
    if files:
        return _file_jobs(files, len(guests), modes, options)
    if every and guests:
        raise ValueError("--all and the names of guests exclude each other")
    if as_tour and (guests or modes or every):
        raise ValueError("--tour takes no guests, no --paging and no --all")
    if guests or modes or every:
        pairs = select(list(guests), list(modes), every or not guests)
    else:
        pairs = tour(load_catalogue().values())
    return [Job(guest, paging, options) for guest, paging in pairs]


def _file_jobs(files: Sequence[Path], words: int, modes: Sequence[str], options: RunOptions) -> list[Job]:
    """The jobs for guests that are ELF files of the user's own."""
    from harness.catalogue import Guest  # noqa: PLC0415 - see `plan`

    if len(files) != words:
        raise ValueError("ELF files and names of the catalogue do not go together in one call")
    if not modes:
        raise ValueError("a guest of your own needs --paging, to say what it was built for")
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    return [
        Job(Guest(str(path), "", tuple(modes), image=path), mode, options) for path in files for mode in _modes(modes)
    ]


def _modes(modes: Sequence[str]) -> Sequence[str]:
    known = [mode.name for mode in PAGED_MODES]
    for mode in modes:
        if mode not in known:
            raise ValueError(f"unknown paging mode {mode!r} (known: {', '.join(known)})")
    return modes


def _kernel_job(guests: Sequence[str], modes: Sequence[str], options: RunOptions, several: bool) -> Job:
    if guests or several:
        raise ValueError("--kernel runs one kernel: no guests, no --all, no --tour")
    if options.monitored:
        raise ValueError(
            f"--kernel goes with --mode observe only: a kernel's boot path does not fit the monitor. --mode "
            f"{options.mode} is for the catalogue's guests and ELF files of their kind"
        )
    if len(modes) > 1:
        raise ValueError("--kernel takes at most one --paging")
    _modes(modes)
    for option, path in (("--kernel", options.kernel), ("--initrd", options.initrd)):
        if path is not None and not path.is_file():
            raise ValueError(f"{option} {path}: no such file")
    paging = modes[0] if modes else ""
    return Job(None, paging or ANY_PAGING, replace(options, paging=paging or None))
