"""Everything that the harness can notice is broken once, and is noticed by what is there to notice it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from types import ModuleType

import pytest

from harness.check.target import ORACLES
from harness.machine.errors import MachineUnavailable
from harness.peers import audit as peers_audit
from harness.peers import kvm_audit, xen302_audit
from harness.peers.eager import EagerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.xen302 import Xen302Engine
from harness.trace.tally import CHECKS
from harness.xi import audit, audit_links, audit_lists, audit_pool, audit_snapshots
from harness.xi.engine import XiEngine
from harness.xi.policies import POLICIES
from tests.mutations.catalogue import MUTATIONS, TESTED, TESTED_CONTROLS
from tests.mutations.hunt import hunt
from tests.mutations.mutation import Catch, Engine, Mutation, Way

ENDINGS = {"assertion", "exception", "tap", "crash", "stuck", "timeout", "error", "verdict"}
COMPARISONS = {"dirty-log", "migration", "twin:fault", "twin:memory", "twin:probe"}
REPLAYS = {f"replay:{check.replace(' ', '-')}" for check in CHECKS}
# What an engine's audit can report, and what of it `eager`, which write-protects nothing, never does.
AUDITS: dict[Engine, tuple[ModuleType, ...]] = {
    XiEngine: (audit, audit_links, audit_lists, audit_pool, audit_snapshots),
    KvmEngine: (peers_audit, kvm_audit),
    Xen302Engine: (peers_audit, xen302_audit),
    EagerEngine: (peers_audit,),
}
NOT_EAGERS = {"F1", "F6", "F7", "K5"}


def hunted(mutation: Mutation, catches: list[Catch]) -> Catch:
    """`hunt`, noted for the table; a machine that cannot be had skips the test."""
    try:
        catch = hunt(mutation)
    except MachineUnavailable as error:
        pytest.skip(str(error))
    catches.append(catch)
    return catch


def marked(mutation: Mutation) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.two_cores,) if mutation.way is not Way.OBSERVE else ()


@pytest.mark.parametrize("mutation", [pytest.param(one, id=one.name, marks=marked(one)) for one in TESTED])
def test_a_mutation_is_caught(mutation: Mutation, catches: list[Catch]) -> None:
    catch = hunted(mutation, catches)
    assert not catch.missing, f"noticed: {catch.evidence or 'nothing'}"


@pytest.mark.parametrize("control", [pytest.param(one, id=one.where, marks=marked(one)) for one in TESTED_CONTROLS])
def test_nobody_cries_out_when_nothing_is_broken(control: Mutation, catches: list[Catch]) -> None:
    catch = hunted(control, catches)
    assert catch.evidence == {}
    assert catch.verdict == ("" if control.script is not None else "pass")


def audit_ids(module: ModuleType) -> set[str]:
    """The invariants that a module of the audit can report: first arguments of `AuditFailure` and `report`, where they
    are constants or the module's names for them."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("AuditFailure", "report"):
            first = node.args[0]
            given = vars(module).get(first.id) if isinstance(first, ast.Name) else getattr(first, "value", None)
            found |= {given} if isinstance(given, str) else set()
    return found


def invariants(engine: Engine) -> set[str]:
    """Ids of all that an engine's audit can report."""
    return set().union(*map(audit_ids, AUDITS[engine]))


def named(mutations: Iterable[Mutation]) -> set[str]:
    return set().union(*(mutation.caught_by for mutation in mutations))


@pytest.mark.parametrize("engine", AUDITS, ids=lambda engine: engine.name)
def test_an_audit_explains_every_invariant_that_it_reports(engine: Engine) -> None:
    assert len(invariants(engine)) >= 18
    explained = " ".join(module.__doc__ or "" for module in AUDITS[engine])
    assert [name for name in sorted(invariants(engine)) if name not in explained] == []


@pytest.mark.parametrize("engine", AUDITS, ids=lambda engine: engine.name)
def test_every_invariant_of_every_engine_has_a_mutation(engine: Engine) -> None:
    caught = named(one for one in MUTATIONS if one.unbroken is engine)
    assert {
        f"audit:{name}" for name in invariants(engine) - (NOT_EAGERS if engine is EagerEngine else set())
    } - caught == set()


@pytest.mark.parametrize("engine", AUDITS, ids=lambda engine: engine.name)
def test_every_oracle_has_a_mutation_of_every_engine(engine: Engine) -> None:
    caught = named(one for one in MUTATIONS if one.unbroken is engine)
    assert {*ORACLES, "dirty-log", "twin:fault", "twin:memory", "stuck"} - caught == set()
    assert {"replay:answers", "replay:walks", "replay:audits", "replay:dirty-log", "replay:pool"} - caught == set()
    if engine is not EagerEngine:
        assert {"self-check", "replay:unexplained"} - caught == set()


def test_every_other_comparison_has_a_mutation() -> None:
    assert (COMPARISONS | {"tap", "crash", "error", "exception", "assertion"}) - named(MUTATIONS) == set()


def test_every_policy_is_broken_in_every_way() -> None:
    ways = {(policy, value, one.way) for one in MUTATIONS for policy, value in one.policies.items()}
    others = [(policy, value) for policy, values in POLICIES.items() for value in values[1:]]
    assert {(*other, way) for other in others for way in (Way.OBSERVE, Way.LIVE, Way.REPLAY)} - ways == set()


def test_the_tests_run_every_engine_and_policy_in_every_way() -> None:
    subjects = {one.subject for one in MUTATIONS}
    ways = {(one.subject, one.way) for one in TESTED if one.script is None}
    assert {(subject, way) for subject in subjects for way in (Way.OBSERVE, Way.LIVE, Way.REPLAY)} - ways == set()


def test_every_catcher_that_is_named_exists() -> None:
    audits = {f"audit:{name}" for engine in AUDITS for name in invariants(engine)}
    assert named(MUTATIONS) - audits - set(ORACLES) - COMPARISONS - ENDINGS - REPLAYS - {"self-check"} == set()


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
