"""The doctor says what is missing and what that means."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import doctor
from harness.machine import qemu


def test_nothing_installed_is_status_3_and_names_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    qemu.find_qemu.cache_clear()
    try:
        findings = {finding.name: finding for finding in doctor.examine()}
    finally:
        qemu.find_qemu.cache_clear()
    assert findings["qemu"].status == doctor.MISSING
    assert "qemu-system-x86" in findings["qemu"].found
    assert "binutils" in findings["ld"].means
    assert findings["gdb"].status == doctor.ABSENT
    assert "no QEMU" in findings["svm"].means
    assert doctor.exit_status(list(findings.values())) == 3


def test_what_is_optional_does_not_fail_the_examination() -> None:
    findings = [doctor.Finding("gdb", doctor.ABSENT, ""), doctor.Finding("gcc", doctor.OK, "")]
    assert doctor.exit_status(findings) == 0
    assert doctor.to_json(findings)["ok"] is True


def test_a_compiler_that_cannot_do_32_bit_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\necho 'gcc: error: unrecognized option -m32' >&2\nexit 1\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (finding,) = [each for each in doctor.examine() if each.name == "gcc -m32"]
    assert finding.status == doctor.MISSING
    assert "unrecognized option" in finding.found


def _finding(name: str) -> doctor.Finding:
    (finding,) = [each for each in doctor.examine() if each.name == name]
    return finding


def test_this_qemu_can_run_a_monitor() -> None:
    finding = _finding("svm")
    assert (finding.status, finding.means) == (doctor.OK, "")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"return": {"model": {"name": "max", "props": {"svm": false}}}}', "lacks it"),
        ('{"error": {"class": "CommandNotFound"}}', "does not say"),
        ("", "does not say"),
        ("qemu: warning\n[]\nnull", "does not say"),
    ],
)
def test_a_qemu_without_svm_costs_live_mode_only(answer: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_output", lambda command, typed="": answer)
    finding = _finding("svm")
    assert finding.status == doctor.ABSENT
    assert found in finding.found
    assert "live mode cannot be used" in finding.means
    assert doctor.exit_status([finding]) == 0


@pytest.mark.parametrize(
    ("cores", "status", "words"), [({0}, "absent", "slowly"), ({0, 1, 2, 3, 4}, "ok", "2 live runs")]
)
def test_live_mode_wants_two_cores_a_run(
    cores: set[int], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    monkeypatch.setattr("os.sched_setaffinity", lambda process, mask: None)
    finding = _finding("pinning")
    assert finding.status == status
    assert words in finding.found + finding.means


def test_a_container_that_forbids_pinning_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(process: int, mask: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("os.sched_setaffinity", forbidden)
    assert "Operation not permitted" in _finding("pinning").found
