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
