"""The pytest plugin: guests as fixtures.

    @pytest.mark.xi_guest(elf="build/my-kernel.elf")
    @pytest.mark.xi_paging("pae", "long4")
    def test_my_kernel(xi_machine):
        assert xi_machine.run_to_checkpoint("mapped")
        assert not xi_machine.check().mismatches
        assert xi_machine.finish().verdict == "pass"

A guest is observed, unless the test says otherwise or the command line does (``pytest --xi-mode live``):

    @pytest.mark.xi_guest("churn")
    @pytest.mark.xi_paging("long4")
    @pytest.mark.xi_mode("observe", "live")  # one test in each
    @pytest.mark.xi_options(pool_spti=40, policies={"zeroing": "critical-path"})
    def test_churn(xi_run):
        assert xi_run().verdict == "pass"

    @pytest.mark.xi_guest("basic")
    def test_both(xi_run):
        assert xi_run(mode="both").verdict == "pass"  # a native and a live run, compared

Loaded by pytest itself through the entry point ``xi_harness``, so it imports next to nothing until a test asks
for a machine. A machine that cannot be had (no QEMU) skips the test; one that is lost is an error of the test,
never a failure.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.options import MODES, Mode

if TYPE_CHECKING:
    from harness.catalogue import Guest
    from harness.options import RunOptions
    from harness.report.record import RunRecord
    from harness.session import Session

LOGS: Final = "build/xi-logs"
SECTION: Final = "xi-harness"
MARKS: Final = (
    'xi_guest(name, *, elf=None): the guest: a name of the catalogue, or elf="FILE" relative to the root directory',
    "xi_paging(*modes): paging modes to run in, one test each; default: the guest's first",
    f"xi_mode(*modes): how the guest is run, one test each: {', '.join(MODES)}; default: --xi-mode. xi_machine takes "
    "one machine at a time, so not both",
    "xi_options(**options): fields of harness.options.RunOptions, e.g. seed, time_limit, engine, memory_mib, policies, "
    "pool_spti, stress",
)
_SLUG_LIMIT: Final = 100


@dataclass(slots=True)
class _Runs:
    """What one test ran: sessions still open or closed, and finished records."""

    sessions: list[Session]
    records: list[RunRecord]

    def all_records(self) -> list[RunRecord]:
        """The records of both, sessions brought up to date as far as they got."""
        return [_conclude(session) for session in self.sessions] + self.records


_RUNS: Final = pytest.StashKey[_Runs]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xi-harness")
    group.addoption("--xi-logs", metavar="DIR", help=f"where each test's console and QEMU output go (default: {LOGS})")
    group.addoption("--xi-seed", type=int, default=1, metavar="N", help="seed of everything chosen at random")
    group.addoption("--xi-engine", default="xi", metavar="NAME", help="the shadow engine to check (default: xi)")
    group.addoption(
        "--xi-mode",
        choices=MODES,
        default=Mode.OBSERVE.value,
        help="how guests run where a test does not say: observe (on their own tables, beside the shadow), live (on the "
        "shadow tables, under a monitor), both (a native and a live run, compared; xi_run only) (default: observe)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", mark)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, name, least in (("xi_paging_mode", "xi_paging", 1), ("xi_run_mode", "xi_mode", 2)):
        mark = metafunc.definition.get_closest_marker(name)
        if fixture not in metafunc.fixturenames or mark is None:
            continue
        if not mark.args:
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: {name} names no mode")
        if len(mark.args) >= least:
            metafunc.parametrize(fixture, mark.args)


@pytest.fixture
def xi_paging_mode(request: pytest.FixtureRequest) -> str:
    """The paging mode of this test: what `xi_paging` says, else the guest's first."""
    return _guest(request.node, None).modes[0]


@pytest.fixture
def xi_run_mode(request: pytest.FixtureRequest) -> str:
    """How the guest of this test is run: what `xi_mode` says, else the command line's --xi-mode."""
    mark = request.node.get_closest_marker("xi_mode")
    return str(mark.args[0] if mark is not None else request.config.getoption("--xi-mode"))


@pytest.fixture
def xi_machine(request: pytest.FixtureRequest, xi_paging_mode: str, xi_run_mode: str) -> Iterator[Session]:
    """A booted guest at its entry point: harness.session.Session, in live mode harness.live.session.LiveSession.

    Besides what the test itself asserts, the test fails if any check it made found a mismatch, an audit found a
    broken invariant, or the interception missed an event.
    """
    from harness.machine.errors import MachineUnavailable  # noqa: PLC0415 - see the module's docstring
    from harness.runs import make_session  # noqa: PLC0415

    guest = _guest(request.node, xi_paging_mode)
    options = _options(request.node, xi_run_mode)
    if options.mode == Mode.BOTH:
        if request.node.get_closest_marker("xi_mode") is None:
            pytest.skip("--xi-mode both compares two runs: xi_machine is one machine, in one mode")
        raise pytest.UsageError(f"{request.node.nodeid}: xi_machine is one machine; mode both goes with xi_run")
    with ExitStack() as stack:
        try:
            session = stack.enter_context(make_session(guest, xi_paging_mode, options))
        except MachineUnavailable as error:
            pytest.skip(str(error))
        _runs(request.node).sessions.append(session)
        yield session


@pytest.fixture
def xi_run(request: pytest.FixtureRequest, xi_paging_mode: str, xi_run_mode: str) -> Callable[..., RunRecord]:
    """A function that runs the guest to its end, checking every checkpoint, and returns its RunRecord.

    In mode both it runs twice, natively and in live mode, and the two are compared. Keyword arguments override
    `RunOptions` fields for that one run. What a bad guest does is in the record's verdict; raises MachineError when
    the machine itself was lost.
    """
    node = request.node

    def run(**overrides: Any) -> RunRecord:
        from harness.machine.errors import MachineError, MachineUnavailable  # noqa: PLC0415
        from harness.runs import run_guest  # noqa: PLC0415

        try:
            options = replace(_options(node, xi_run_mode), **overrides)
            record = run_guest(_guest(node, xi_paging_mode), xi_paging_mode, options)
        except MachineUnavailable as error:
            pytest.skip(str(error))
        _runs(node).records.append(record)
        if record.verdict == "error" and record.expected != "error":
            raise MachineError(record.reason)
        return record

    return run


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    result = yield
    runs = pyfuncitem.stash.get(_RUNS, None)
    for session in runs.sessions if runs else ():
        record = session.record
        found = {
            "mismatches": record.mismatches,
            "audit failures": record.audit_failures,
            "interception misses": record.interception_misses,
        }
        if any(found.values()):
            counts = ", ".join(f"{count} {name}" for name, count in found.items() if count)
            pytest.fail(f"{record.guest} {record.paging} ({record.mode}): {counts}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    runs = item.stash.get(_RUNS, None)
    if call.when == "call" and runs is not None:
        records = runs.all_records() if report.failed else []
        for session in runs.sessions:
            session.keep_logs()
            session.settle(failed=report.failed)
        if report.failed:
            report.sections.append((SECTION, _section(item, records)))
    if report.failed and call.excinfo is not None and _is_machine_error(call.excinfo.value):
        # A plain attribute, so that it survives the way from a pytest-xdist worker.
        report.xi_machine_error = True  # type: ignore[attr-defined]
        report.longrepr = f"{type(call.excinfo.value).__name__}: {call.excinfo.value}"
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if getattr(report, "xi_machine_error", False):
        return "error", "E", "ERROR"
    return None


def _is_machine_error(error: BaseException) -> bool:
    try:
        from harness.machine.errors import MachineError  # noqa: PLC0415 - see the module's docstring
    except ImportError:
        return False
    return isinstance(error, MachineError)


def _section(item: pytest.Item, records: list[RunRecord]) -> str:
    from harness.report.failure import failure_block  # noqa: PLC0415 - see the module's docstring
    from harness.trace.keeping import replay_command  # noqa: PLC0415

    blocks = []
    for record in records:
        # The test did more than `xi-harness run` would, perhaps to a guest that no catalogue knows.
        record.repro = [shlex.join(["pytest", item.nodeid, "--xi-seed", str(record.seed), *_mode_words(item)])]
        if record.trace:
            record.repro.append(replay_command(record.trace))
        blocks.append(failure_block(record))
    return "\n\n".join(blocks)


def _mode_words(item: pytest.Item) -> list[str]:
    mode = item.config.getoption("--xi-mode")
    return [] if mode == Mode.OBSERVE else ["--xi-mode", mode]


def _conclude(session: Session) -> RunRecord:
    """The session's record; where the machine has gone, as it was last known."""
    from harness.machine.errors import MachineError  # noqa: PLC0415 - see the module's docstring

    ended = session.ended
    with suppress(MachineError):
        session.conclude()
    if not ended:
        session.record.verdict, session.record.reason = "fail", "the test ended before the guest did"
    return session.record


def _runs(node: pytest.Item) -> _Runs:
    return node.stash.setdefault(_RUNS, _Runs([], []))


def _guest(node: pytest.Item, paging: str | None) -> Guest:
    """The guest that the test's marks name. Raises pytest.UsageError for marks that make no sense."""
    from harness.catalogue import Guest, load_catalogue  # noqa: PLC0415 - see the module's docstring

    mark = node.get_closest_marker("xi_guest")
    if mark is None:
        raise pytest.UsageError(f'{node.nodeid}: needs @pytest.mark.xi_guest("NAME") or xi_guest(elf="FILE")')
    elf = mark.kwargs.get("elf")
    if (elf is None) == (not mark.args) or len(mark.args) > 1 or set(mark.kwargs) - {"elf"}:
        raise pytest.UsageError(f"{node.nodeid}: xi_guest takes a guest's name, or elf=FILE")
    if elf is not None:
        if paging is None:
            raise pytest.UsageError(f"{node.nodeid}: a guest of your own needs xi_paging too")
        path = node.config.rootpath / elf
        return Guest(path.stem, str(path), (paging,), image=path)
    catalogue = load_catalogue()
    if mark.args[0] not in catalogue:
        raise pytest.UsageError(f"{node.nodeid}: no guest {mark.args[0]!r} (known: {', '.join(catalogue)})")
    guest = catalogue[mark.args[0]]
    if paging is not None and paging not in guest.modes:
        raise pytest.UsageError(f"{node.nodeid}: {guest.name} has no mode {paging!r}, only {', '.join(guest.modes)}")
    return guest


def _options(node: pytest.Item, mode: str) -> RunOptions:
    """The run's options: the command line's, then `xi_options` marks, the closest last. Empties the log folder."""
    from harness.options import RunOptions  # noqa: PLC0415 - see the module's docstring

    config = node.config
    if mode not in MODES:
        raise pytest.UsageError(f"{node.nodeid}: xi_mode takes one of: {', '.join(MODES)}")
    options = RunOptions(seed=config.getoption("--xi-seed"), engine=config.getoption("--xi-engine"), mode=mode)
    given = {
        key: value for mark in reversed(list(node.iter_markers("xi_options"))) for key, value in mark.kwargs.items()
    }
    try:
        options = replace(options, **given)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"{node.nodeid}: xi_options: {error}") from error
    if options.log_dir is None:
        options = replace(options, log_dir=_log_folder(node))
        if options.log_dir is not None and _RUNS not in node.stash:
            shutil.rmtree(options.log_dir, ignore_errors=True)
    if options.keep_traces is None:
        options = replace(options, keep_traces=options.log_dir)
    return options


def _log_folder(node: pytest.Item) -> Path:
    """The test's own folder: its id with what a file name cannot hold folded away; long ones end in a digest."""
    base = Path(node.config.getoption("--xi-logs") or node.config.rootpath / LOGS)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", node.nodeid).strip("-.")
    if len(slug) > _SLUG_LIMIT:
        slug = f"{slug[:_SLUG_LIMIT]}-{hashlib.sha256(node.nodeid.encode()).hexdigest()[:8]}"
    return base / slug
