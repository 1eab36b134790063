"""Everything that the harness can notice is broken once, and is noticed by what is there to notice it."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from harness.check.target import ORACLES
from harness.machine.errors import MachineUnavailable
from harness.xi import audit, audit_lists
from tests.mutations.catalogue import CONTROLS, MUTATIONS
from tests.mutations.hunt import hunt
from tests.mutations.mutation import Catch, Mutation

ENDINGS = {"assertion", "exception", "tap", "crash", "stuck", "timeout", "error", "verdict"}
COMPARISONS = {"dirty-log", "migration", "twin:fault", "twin:memory", "twin:probe"}


def hunted(mutation: Mutation, catches: list[Catch]) -> Catch:
    """`hunt`, noted for the table; a machine that cannot be had skips the test."""
    try:
        catch = hunt(mutation)
    except MachineUnavailable as error:
        pytest.skip(str(error))
    catches.append(catch)
    return catch


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_caught(mutation: Mutation, catches: list[Catch]) -> None:
    catch = hunted(mutation, catches)
    assert not catch.missing, f"noticed: {catch.evidence or 'nothing'}"


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.where)
def test_nobody_cries_out_when_nothing_is_broken(control: Mutation, catches: list[Catch]) -> None:
    catch = hunted(control, catches)
    assert catch.evidence == {}
    assert catch.verdict == ("" if control.script is not None else "pass")


def audit_ids(module: ModuleType) -> set[str]:
    """The invariants that a module of the audit can report: constant first arguments of `AuditFailure` and `report`."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("AuditFailure", "report"):
            found.add(str(node.args[0].value))
    return found


INVARIANTS = audit_ids(audit) | audit_ids(audit_lists)
NAMED = frozenset().union(*(mutation.caught_by for mutation in MUTATIONS))


def test_the_audit_explains_every_invariant_that_it_reports() -> None:
    assert len(INVARIANTS) >= 29
    assert audit.__doc__ is not None
    assert [name for name in sorted(INVARIANTS) if name not in audit.__doc__] == []


def test_every_invariant_has_a_mutation() -> None:
    assert {f"audit:{name}" for name in INVARIANTS} - NAMED == set()


def test_every_oracle_has_a_mutation() -> None:
    assert {*ORACLES, *COMPARISONS, "self-check", "tap"} - NAMED == set()


def test_every_catcher_that_is_named_exists() -> None:
    audits = {f"audit:{name}" for name in INVARIANTS}
    assert NAMED - audits - set(ORACLES) - COMPARISONS - ENDINGS - {"self-check"} == set()


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
