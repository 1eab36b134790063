"""The report files of the command: checked before the work, written after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from harness.report import json_file, junit
from harness.report.output_file import check_writable
from harness.report.record import RunRecord

STDOUT: Final = Path("-")

Writer = Callable[[Sequence[RunRecord], bool], None]


def outputs(json_path: Path | None, junit_path: Path | None, html_path: Path | None) -> dict[str, Writer]:
    """What writes each report file that was asked for; usage error now if one could not be written later."""
    for path in (json_path, junit_path, html_path):
        if path is not None and path != STDOUT:
            must_be_writable(path, "report file")
    writers: dict[str, Writer] = {}
    if json_path is not None:
        writers[str(json_path)] = lambda records, cut: write_json(json_path, json_file.document(records, cut))
    if junit_path is not None:
        writers[str(junit_path)] = lambda records, _: junit.write(junit_path, records)
    if html_path is not None:
        from harness.report import html  # noqa: PLC0415 - jinja2 and matplotlib

        writers[str(html_path)] = lambda records, _: html.write(html_path, records)
    return writers


def must_be_writable(path: Path, what: str) -> None:
    """Usage error about `what` now if `path` could not be written later."""
    try:
        check_writable(path)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}", param_hint=what) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` to a file, or to standard output for `-`. Raises OSError."""
    if path == STDOUT:
        typer.echo(json.dumps(content, indent=1, allow_nan=False))
    else:
        json_file.write(path, content)


def make_folder(path: Path, option: str = "--logs") -> None:
    """Makes the folder of `option`; usage error when it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}", param_hint=option) from error
