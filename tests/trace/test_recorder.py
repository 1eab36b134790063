"""A trace is kept whole or not at all, and says what happened in order."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.check.target import CheckReport, Stop
from harness.trace import records as r
from harness.trace.reader import open_trace
from harness.x86.access import Access
from tests.trace.guest import PAGES, RecordedGuest
from tests.trace.test_recorded_memory import HEADER


def test_nothing_is_left_of_a_trace_that_is_not_kept(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path).live(steps=30)
    assert os.listdir(tmp_path) == []
    guest.recorder.finish("pass", "")
    guest.recorder.close()
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_when_the_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.trace.guest import RecordedGuest; "
        "guest = RecordedGuest(Path(sys.argv[1])).live(); guest.recorder.flush(); "
        "print(guest.recorder.path.stat().st_size, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert int(done.stdout) > 1000
    assert done.returncode < 0
    assert os.listdir(tmp_path) == []


def test_events_are_numbered_as_the_log_numbers_them(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    log = guest.recorder.log
    before = log.total
    for kind, value, text in (("cpuid", 1, "cpuid"), ("msr", -1, ""), ("cpuid", 1 << 65 | 7, "cpüid \udc80")):
        log.add(kind, 0x1000, value, text)
    kept = log.last(3)
    events = [record for record in guest.save().records() if isinstance(record, r.Intercepted)][before:]
    assert [event.number for event in events] == [event.index for event in kept]
    assert [(event.kind, event.value, event.text) for event in events] == [
        ("cpuid", 1, "cpuid"),
        ("msr", (1 << 64) - 1, ""),
        ("cpuid", 7, "cpüid ?"),
    ]


def test_more_events_than_a_chunk_holds_come_back_in_order(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    before = guest.recorder.log.total
    for number in range(10_000):
        guest.recorder.log.add("cpuid", number, number, "cpuid")
    trace = guest.save()
    assert trace.end == r.End("pass", "", before + 10_000)
    events = [record for record in trace.records() if isinstance(record, r.Intercepted)][before:]
    assert [event.rip for event in events] == list(range(10_000))


def test_a_checkpoint_and_its_check(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    state, recorder = guest.domain.state, guest.recorder
    guest.domain.engine.audit()
    recorder.checkpoint(Stop(7, "mapped", state, True, False))
    recorder.checked(CheckReport({"probe": 3, "ad_bits": 4}, [], {}))
    told = [record for record in guest.save().records() if isinstance(record, r.Checkpoint | r.Checked)]
    here, checked = told
    assert isinstance(here, r.Checkpoint)
    assert isinstance(checked, r.Checked)
    assert here[:5] == (7, "mapped", state, True, False)
    assert checked[:3] == (7, 0, 0)
    assert here.crc == checked.crc


def test_at_a_checkpoint_the_guests_tables_are_in_the_trace_as_they_are(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    entry = guest.domain.entry_at(PAGES[0])
    guest.domain.poke(entry, 0x77 << 12)  # a store that the engine has no reason to look at yet
    guest.recorder.checkpoint(Stop(1, "now", guest.domain.state, True, False))
    records = list(guest.save().records())
    words = [record for record in records if isinstance(record, r.Words)]
    at = guest.domain.mfn(entry >> 12), entry >> 3 & 511
    assert any(at[0] == word.mfn and (at[1], 0x77 << 12) in zip(*word[1:], strict=True) for word in words)


def test_a_trace_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.recorder.flush()
    trace = open_trace(guest.recorder.path)
    assert not trace.complete
    following = trace.follow()
    while next(following) is not None:
        pass
    assert next(following) is None
    guest.access(PAGES[0], Access.STORE)
    guest.recorder.flush()
    assert isinstance(next(following), r.Intercepted)


def test_kept_traces_have_names_of_their_own(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        guest = RecordedGuest(tmp_path)
        guest.recorder.header = replace(HEADER, guest="../my kernel")
        guest.recorder.finish("fail", "1 mismatch")
        path = guest.recorder.keep_in(tmp_path)
        assert path is not None
        kept.append(path)
    assert len(set(kept)) == 2
    for path in kept:
        assert path.parent == tmp_path
        assert path.name.startswith("..-my-kernel-pae-live-seed1-")
        assert open_trace(path).end == r.End("fail", "1 mismatch", 1)


def test_a_full_disk_costs_the_trace_and_nothing_else(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    guest = RecordedGuest(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        guest.live(steps=60)
        guest.recorder.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert guest.recorder.lost == os.strerror(errno.EFBIG)
    guest.live(steps=60)
    guest.recorder.finish("fail", "")
    guest.recorder.keep(tmp_path / "t")
    assert guest.recorder.keep_in(tmp_path) is None
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="too large"):
        guest.recorder.path  # noqa: B018 - looking is what raises


def test_where_nothing_can_be_written_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    guest = RecordedGuest(tmp_path / "file")
    guest.live(steps=20)
    assert guest.recorder.lost == os.strerror(errno.EEXIST)
    guest.recorder.finish("pass", "")


def test_a_trace_that_cannot_be_kept_leaves_no_name_behind(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.recorder.finish("fail", "")
    assert guest.recorder.keep_in(tmp_path / "absent") is None
    assert guest.recorder.lost == os.strerror(errno.ENOENT)
