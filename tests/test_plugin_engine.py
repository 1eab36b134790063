"""An engine that is no part of this project, the one that `harness/ENGINES.md` shows: installed, and in XI's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness import cli
from harness.engine import RETRY
from harness.engines import engine_class
from harness.peers.engine import PeerEngine
from harness.work import Counted
from harness.x86.access import Access
from harness.x86.modes import MODES
from tests.peers.domain import PeerDomain, storm
from tests.trace.guest import RecordedGuest

TESTS = Path(__file__).resolve().parent
EXAMPLE = TESTS / "plugin_engine"
PAGE = TESTS.parent / "harness" / "ENGINES.md"
VA = 0x40000000


def install(folder: Path) -> None:
    """What pip leaves of the example in a folder of packages."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    for module in project["tool"]["setuptools"]["py-modules"]:
        (folder / f"{module}.py").write_text((EXAMPLE / f"{module}.py").read_text())
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    install(folder)
    return folder


@pytest.fixture
def lazy(packages: Path, monkeypatch: pytest.MonkeyPatch) -> type[PeerEngine]:
    """The engine, found by its entry point."""
    monkeypatch.syspath_prepend(packages)
    engine = engine_class("lazy")
    assert isinstance(engine, type) and issubclass(engine, PeerEngine)
    return engine


def in_process(*words: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def command(packages: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`xi-harness` where the example is installed."""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    line = [sys.executable, "-m", "harness", *(str(word) for word in words)]
    return subprocess.run(
        line, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("name", "language"), [("lazy_engine.py", "python"), ("pyproject.toml", "toml")])
def test_the_page_shows_the_files_as_they_are(name: str, language: str) -> None:
    _, found, rest = PAGE.read_text().partition(f"```{language}\n")
    assert found
    assert rest.partition("```")[0] == (EXAMPLE / name).read_text()


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_storms(mode: str, fill: str, lazy: type[PeerEngine]) -> None:
    for seed, pool in ((1, 3), (2, 12)):
        storm(lazy, mode, pool, seed, fill).rage(40)


def test_nothing_is_shadowed_before_it_is_used_nor_after_a_flush(lazy: type[PeerEngine]) -> None:
    domain = PeerDomain(lazy)
    domain.map(VA, 300)
    domain.start()
    assert len(domain.peer.pool_pages.in_use) == 1
    assert domain.peer.shadow_fault(VA, Access.STORE) == RETRY
    assert domain.hardware(VA, Access.STORE).frame == 300
    assert len(domain.peer.pool_pages.in_use) == 4
    domain.flush()
    assert domain.hardware(VA, Access.LOAD).frame is None
    assert isinstance(domain.peer, Counted)
    assert domain.peer.work().pages_allocated == 5


def test_a_recorded_run_is_replayed_through_it(lazy: type[PeerEngine], tmp_path: Path) -> None:
    trace = RecordedGuest(tmp_path).live().save()
    result = in_process("replay", trace.path, "--engine", "lazy", "--json", tmp_path / "replay.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "replay.json").read_text())
    assert (told["engine"], told["exact"], told["passed"]) == (lazy.name, False, True)
    assert told["checks"]["walks"]["compared"] > 0


def test_it_is_compared(lazy: type[PeerEngine], tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    workload = "faults:spaces=1,tables=2,fill=16,rounds=1"
    result = in_process("compare", "--engines", "xi,lazy", "--quick", "--workload", workload, "--json", path)
    assert result.exit_code == 0, result.output
    figures = json.loads(path.read_text())["figures"]
    assert figures[f"fault.work_ratio.{lazy.name}"] > 0


MODE = [
    pytest.param("observe", id="observe"),
    pytest.param("live", id="live", marks=pytest.mark.two_cores),
]


@pytest.mark.parametrize("mode", MODE)
def test_a_real_guest_is_checked_with_it(mode: str, packages: Path, tmp_path: Path) -> None:
    words = ("run", "basic", "--paging", "long4", "--mode", mode, "--engine", "lazy")
    done = command(packages, *words, "--json", tmp_path / "run.json", "--no-record")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert (record["verdict"], record["engine"], record["mode"]) == ("pass", "lazy", mode)
    assert record["checks"]["probe"] > 1000
    assert record["events"]["page_fault"] > 100
