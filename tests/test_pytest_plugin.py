"""The plugin, seen by a user's test suite. The machine is a fake; `tests/guests` uses the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from harness import runs as real
from harness.catalogue import Guest
from harness.machine.errors import MachineLost, MachineUnavailable
from harness.options import RunOptions
from harness.report.record import RunRecord
from tests.report.records import mismatch

pytest_plugins = ["pytester"]

LOST = MachineLost("QEMU ended", ["qemu-system-x86_64", "-nographic"], -11, "boom")


class FakeSession:
    """As much of a Session as the plugin and these tests touch."""

    def __init__(self, guest: Guest, paging: str, options: RunOptions) -> None:
        self.guest, self.paging, self.options = guest, paging, options
        self.record = RunRecord(guest.name, paging, mode=options.mode, seed=options.seed)
        self.ended = False

    def check(self) -> SimpleNamespace:
        self.record.mismatches, self.record.failures = 1, [mismatch()]
        return SimpleNamespace(mismatches=self.record.failures)

    def run_to_checkpoint(self) -> None:
        raise LOST

    def finish(self) -> RunRecord:
        self.ended = True
        self.record.verdict = "pass"
        return self.record

    conclude = finish

    def keep_logs(self) -> None:
        assert self.options.log_dir is not None
        folder = self.options.log_dir / f"{self.guest.name}.{self.paging}"
        folder.mkdir(parents=True)
        (folder / "console.txt").write_text("hello")
        self.record.log_dir = str(folder)

    def settle(self, failed: bool) -> None:
        assert self.options.keep_traces is not None
        if failed:
            self.record.trace = str(self.options.keep_traces / "basic.xitrace")


@contextmanager
def _make_session(guest: Guest, paging: str, options: RunOptions) -> Iterator[FakeSession]:
    yield FakeSession(guest, paging, options)


def _no_qemu(*arguments: Any) -> Any:
    raise MachineUnavailable("QEMU is not installed: run `make setup`")


Suite = Callable[..., pytest.RunResult]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Runs a test file's text; `opens` and `runs` stand in for the functions that the plugin calls."""

    def run(text: str, *arguments: str, opens: Any = _make_session, runs: Any = None) -> pytest.RunResult:
        monkeypatch.setattr(real, "make_session", opens)
        monkeypatch.setattr(real, "run_guest", runs)
        pytester.makepyfile(f"import pytest\n{dedent(text)}")
        return pytester.runpytest_inprocess("--strict-markers", "-p", "no:cacheprovider", *arguments)

    return run


def test_one_test_for_each_paging_mode(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        @pytest.mark.xi_paging("pae", "long4")
        @pytest.mark.xi_mode("observe")
        def test_it(xi_machine):
            assert xi_machine.guest.name == "basic"
            assert xi_machine.finish().verdict == "pass"
        """,
        "-v",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]pae] PASSED*", "*test_it[[]long4] PASSED*"])


def test_a_guest_of_the_users_own(suite: Suite, pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.elf").write_bytes(b"\x7fELF")
    suite(
        """
        @pytest.mark.xi_guest(elf="mine.elf")
        @pytest.mark.xi_paging("pae")
        @pytest.mark.xi_options(time_limit=3.5)
        def test_it(xi_machine, pytestconfig):
            assert xi_machine.guest.image == pytestconfig.rootpath / "mine.elf"
            assert xi_machine.paging == "pae"
            assert (xi_machine.options.time_limit, xi_machine.options.seed) == (3.5, 9)
        """,
        "--xi-seed=9",
    ).assert_outcomes(passed=1)


def test_a_failure_shows_the_block_and_where_the_logs_are(suite: Suite, pytester: pytest.Pytester) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        @pytest.mark.xi_paging("pae")
        def test_it(xi_machine):
            assert not xi_machine.check().mismatches
        """,
        "--xi-logs=kept",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- xi-harness -*",
            "*the test ended before the guest did*",
            "*0x0*401000*",
            "logs kept in kept*basic.pae",
            "trace kept in kept*test_it*basic.xitrace",
            "  pytest '*::test_it[[]pae[]]' --xi-seed 1",
            "  xi-harness replay kept*basic.xitrace",
        ]
    )
    (console,) = Path(pytester.path / "kept").glob("*/basic.pae/console.txt")
    assert console.read_text() == "hello"


def test_a_mismatch_that_the_test_ignores_fails_it_all_the_same(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_machine):
            xi_machine.check()
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*basic nopae (observe): 1 mismatches*"])


def test_without_a_qemu_tests_skip_and_say_why(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_machine(xi_machine):
            pass

        @pytest.mark.xi_guest("basic")
        def test_run(xi_run):
            xi_run()
        """,
        "-rs",
        opens=_no_qemu,
        runs=_no_qemu,
    )
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*QEMU is not installed*"])


def test_a_lost_machine_is_an_error_not_a_failure(suite: Suite) -> None:
    def loses(guest: Guest, paging: str, options: RunOptions) -> RunRecord:
        return RunRecord(guest.name, paging, verdict="error", reason="QEMU ended (exit status -11)")

    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_machine(xi_machine):
            xi_machine.run_to_checkpoint()

        @pytest.mark.xi_guest("basic")
        def test_run(xi_run):
            xi_run()
        """,
        runs=loses,
    )
    result.assert_outcomes(errors=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*QEMU ended (exit status -11)*", "*stderr: boom*"])


def test_xi_run_takes_options_for_one_run(suite: Suite) -> None:
    def runs(guest: Guest, paging: str, options: RunOptions) -> RunRecord:
        return RunRecord(guest.name, paging, verdict="pass", seed=options.seed)

    suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_run):
            assert [xi_run().seed, xi_run(seed=5).seed] == [1, 5]
        """,
        runs=runs,
    ).assert_outcomes(passed=1)


def test_logs_of_an_earlier_session_are_gone(suite: Suite, pytester: pytest.Pytester) -> None:
    text = """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_machine):
            xi_machine.finish()
        """
    suite(text).assert_outcomes(passed=1)
    suite(text).assert_outcomes(passed=1)
    assert len(list((pytester.path / "build" / "xi-logs").glob("*/basic.nopae/console.txt"))) == 1


@pytest.mark.parametrize(
    ("marks", "complaint"),
    [
        ("", "needs @pytest.mark.xi_guest"),
        ("@pytest.mark.xi_guest('nobody')", "no guest 'nobody' (known: basic"),
        ("@pytest.mark.xi_guest()", "takes a guest's name, or elf=FILE"),
        ("@pytest.mark.xi_guest(elf='a.elf')", "needs xi_paging too"),
        ("@pytest.mark.xi_guest('basic')\n@pytest.mark.xi_paging('pea')", "has no mode 'pea', only"),
        ("@pytest.mark.xi_guest('basic')\n@pytest.mark.xi_mode('dead')", "xi_mode takes one of: observe, live, both"),
        ("@pytest.mark.xi_guest('basic')\n@pytest.mark.xi_mode('both')", "mode both goes with xi_run"),
        ("@pytest.mark.xi_guest('basic')\n@pytest.mark.xi_options(mode='dead')", "xi_options: unknown mode"),
        ("@pytest.mark.xi_guest('basic')\n@pytest.mark.xi_options(sede=1)", "xi_options:"),
    ],
)
def test_marks_that_make_no_sense_are_an_error_that_says_so(suite: Suite, marks: str, complaint: str) -> None:
    result = suite(f"{marks}\ndef test_it(xi_machine):\n    pass\n")
    result.assert_outcomes(errors=1)
    assert complaint in result.stdout.str()


def test_the_command_line_says_how_guests_run_and_a_test_may_say_otherwise(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_machine):
            assert xi_machine.options.mode == "live"

        @pytest.mark.xi_guest("basic")
        @pytest.mark.xi_mode("observe")
        def test_observed(xi_machine):
            assert xi_machine.options.mode == "observe"

        @pytest.mark.xi_guest("basic")
        @pytest.mark.xi_options(stress=True, policies={"zeroing": "idle"})
        def test_options(xi_machine):
            assert xi_machine.options.stress
            assert xi_machine.options.policies == (("zeroing", "idle"),)
        """,
        "--xi-mode=live",
    )
    result.assert_outcomes(passed=3)


def test_one_test_for_each_mode(suite: Suite) -> None:
    def runs(guest: Guest, paging: str, options: RunOptions) -> RunRecord:
        return RunRecord(guest.name, paging, verdict="pass", mode=options.mode)

    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        @pytest.mark.xi_paging("pae")
        @pytest.mark.xi_mode("observe", "live", "both")
        def test_it(xi_run, xi_run_mode):
            assert xi_run().mode == xi_run_mode
        """,
        "-v",
        runs=runs,
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"*test_it[[]pae-{mode}] PASSED*" for mode in ("observe", "live", "both")])


def test_a_machine_is_in_one_mode_so_both_skips_it(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_machine):
            pass
        """,
        "-rs",
        "--xi-mode=both",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*xi_machine is one machine*"])


def test_a_failure_in_live_mode_is_reproduced_in_live_mode(suite: Suite) -> None:
    result = suite(
        """
        @pytest.mark.xi_guest("basic")
        def test_it(xi_machine):
            assert not xi_machine.check().mismatches
        """,
        "--xi-mode=live",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["basic nopae (live, *", "  pytest *::test_it --xi-seed 1 --xi-mode live"])
