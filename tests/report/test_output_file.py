"""A report file is complete or not there; devices and links survive being written to."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from harness.report.output_file import check_writable, copy_atomic, write_atomic


def test_the_text_arrives_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomic(tmp_path / "report", "grün\n")
    assert (tmp_path / "report").read_text(encoding="utf-8") == "grün\n"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_bytes_are_copied_from_where_the_source_stands(tmp_path: Path) -> None:
    source = io.BytesIO(bytes(range(256)))
    source.seek(250)
    copy_atomic(tmp_path / "copy", source)
    assert (tmp_path / "copy").read_bytes() == bytes(range(250, 256))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "report", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("old")
    (tmp_path / "report").chmod(0o604)
    write_atomic(tmp_path / "report", "new")
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o604


def test_a_link_still_points_where_it_did(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_device_is_written_to_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    check_writable(tmp_path / "null")
    write_atomic(tmp_path / "null", "gone")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_atomic(Path("/dev/full"), "x" * 100_000)


@pytest.mark.parametrize("name", [".", "absent/report", "file/report"])
def test_what_cannot_be_written_later_is_refused_now(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"."):
        check_writable(tmp_path / name)


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []
