"""What is compared when so much is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare import plan as planning
from harness.compare import runner
from harness.compare.plan import ENGINES, Plan, Recorded, Request, make_plan, workload_lines
from harness.compare.runner import Case
from harness.trace.reader import TraceError
from harness.workload import SYNTHETIC
from tests.compare.fakes import Counting, Plain, engines


def cases(plan: Plan) -> list[Case]:
    return [case for case in plan.cases if isinstance(case, Case)]


def labels(case: Case | Recorded) -> list[str]:
    return [subject.label for subject in case.subjects]


def install(monkeypatch: pytest.MonkeyPatch, **known: type[Plain]) -> None:
    for module, name in ((planning, "find_engine"), (planning, "engine_class"), (runner, "engine_class")):
        monkeypatch.setattr(module, name, engines(**known))


def test_without_a_word_all_there_is_is_compared() -> None:
    plan = make_plan(Request())
    assert plan.base == "xi" and plan.domains and plan.rounds == planning.ROUNDS
    assert {case.name for case in cases(plan)} == set(SYNTHETIC)
    (recorded,) = [case for case in plan.cases if isinstance(case, Recorded)]
    assert (recorded.name, recorded.guest, recorded.paging) == ("trace:churn/long4", "churn", "long4")
    faults = next(case for case in cases(plan) if case.name == "faults" and case.standard)
    assert labels(faults)[:4] == list(ENGINES)
    policies = {"xi snapshots=dynamic", "xi backlinks=gpt-only", "xi backlinks=none", "xi zeroing=critical-path"}
    assert policies <= set(labels(faults)[4:])
    assert "xi pool=shared" not in labels(faults)  # that is measured with several domains
    sizes = [case.size for case in cases(plan) if case.name == "sharing"]
    assert sizes == [1, 16, 256]  # the ends and the usual one; who asks for the family gets more
    assert len(cases(make_plan(Request(["xi"], ["sharing"])))) > len(sizes)
    assert {subject.label for subject in faults.once} == {"eager", *labels(faults)[4:]}
    assert plan.runs > sum(len(case.subjects) for case in plan.cases)


def test_each_family_has_one_size_that_stands_for_it_and_the_others_are_run_once() -> None:
    for name in SYNTHETIC:
        series = cases(make_plan(Request(["xi", "kvm"], [name])))
        assert [case.size for case in series] == sorted(case.size for case in series)
        assert [case.standard for case in series].count(True) == 1
        assert {case.rounds for case in series if not case.standard} <= {1}
        assert {case.knob for case in series} == {SYNTHETIC[name].axis}


def test_what_goes_on_inside_is_looked_at_where_the_workload_is_about_it() -> None:
    assert all(case.inside for case in cases(make_plan(Request(["xi"], ["promote"]))))
    assert [bool(case.inside) for case in cases(make_plan(Request(["xi"], ["faults"])))].count(True) == 1
    assert not any(case.inside for case in cases(make_plan(Request(["xi"], ["dirty"]))))


def test_engines_that_take_minutes_are_not_run_in_large_guests() -> None:
    series = cases(make_plan(Request(workloads=["mappings"])))
    assert "eager" in labels(series[0]) and "eager" not in labels(series[-1])
    alone = cases(make_plan(Request(["eager"], ["mappings"])))
    assert labels(alone[-1]) == ["eager"]  # who asks for nothing else gets it


def test_quick_is_smaller() -> None:
    quick, whole = make_plan(Request(quick=True)), make_plan(Request())
    assert quick.rounds == 1 and quick.runs < whole.runs / 2
    assert not [case for case in quick.cases if isinstance(case, Recorded)]
    assert make_plan(Request(quick=True, rounds=5)).rounds == 5


def test_knobs_choose_one_size() -> None:
    plan = make_plan(Request(["xi", "kvm"], ["faults:spaces=2,fill=16", "fork:tables=1"], ["backlinks=none"], 3))
    first, second = cases(plan)
    assert (first.name, first.title, first.standard, first.rounds) == (*["faults:spaces=2,fill=16"] * 2, True, 3)
    assert first.workload.knobs["spaces"] == 2 and first.workload.knobs["fill"] == 16
    assert second.workload.knobs["tables"] == 1
    assert labels(first) == ["xi", "kvm", "xi backlinks=none"]
    assert first.inside == first.subjects
    assert not plan.domains


def test_domains_are_a_workload_of_their_own() -> None:
    plan = make_plan(Request(["xi"], ["domains"]))
    assert plan.domains and not plan.cases and plan.runs == planning.DOMAIN_RUNS * plan.rounds


def test_policies_together_are_one_column() -> None:
    (case,) = cases(make_plan(Request(["xi"], ["faults:spaces=1"], ["zeroing=critical-path,snapshots=dynamic"])))
    assert labels(case) == ["xi", "xi snapshots=dynamic zeroing=critical-path"]


def test_ratios_are_to_xi_wherever_it_stands_and_to_the_first_without_it() -> None:
    assert make_plan(Request(["kvm", "xi"], ["fork:tables=1"])).base == "xi"
    without = make_plan(Request(["kvm", "eager"], ["fork:tables=1"]))
    assert without.base == "kvm" and not without.domains
    assert not make_plan(Request(["kvm", "eager"])).domains  # XI alone has them


def test_an_engine_that_is_plugged_in_is_compared_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, plain=Plain, counting=Counting)
    plan = make_plan(Request(["counting", "plain", "plain"], ["fork:tables=1"]))
    assert labels(cases(plan)[0]) == ["counting", "plain"]


@pytest.mark.parametrize(
    ("operations", "complaint"),
    [
        ({"gva_to_gpa": "stroll"}, "engine told: its operations name methods that it has not: stroll"),
        ({"walk": "walk"}, "engine told: its operations name walk (known: shadow_fault, shadow_resync_all, "),
    ],
)
def test_an_engine_that_tells_of_what_there_is_not(
    monkeypatch: pytest.MonkeyPatch, operations: dict[str, str], complaint: str
) -> None:
    install(monkeypatch, told=type("Told", (Counting,), {"operations": operations}))
    with pytest.raises(ValueError) as error:
        make_plan(Request(["told"]))
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request(["xi", "xen"]), "unknown engine 'xen' (installed: "),
        (Request([]), "no engine is named"),
        (Request(policies=["backlinks=some"]), "engine xi: unknown value 'some' of policy backlinks"),
        (Request(policies=["backlinks"]), "it has the form NAME=VALUE"),
        (Request(workloads=["fault"]), "unknown workload 'fault' (known: faults, mappings,"),
        (Request(workloads=["trace:"]), "unknown workload 'trace:'"),
        (Request(workloads=["faults:spaces"]), "faults:spaces: 'spaces' has not the form KNOB=VALUE"),
        (Request(workloads=["faults:"]), "'' has not the form KNOB=VALUE"),
        (Request(workloads=["faults:spaces=0"]), "faults:spaces=0: spaces=0: at least 1"),
        (Request(workloads=["faults:colour=1"]), "unknown knob 'colour' (the knobs are spaces, tables,"),
        (Request(workloads=["trace:nowhere"]), "there is no such file, nor has it the form trace:GUEST/MODE"),
        (Request(workloads=["trace:nobody/long4"]), "unknown guest 'nobody' (known: "),
        (Request(workloads=["trace:churn/long7"]), "churn does not run in 'long7' (it does in "),
    ],
)
def test_what_there_is_not_is_said_with_what_there_is(request_: Request, complaint: str) -> None:
    with pytest.raises(ValueError) as error:
        make_plan(request_)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(b"nothing")
    with pytest.raises(TraceError):
        make_plan(Request(["xi"], [f"trace:{path}"]))


def test_the_list_names_families_sizes_and_knobs() -> None:
    lines = workload_lines()
    assert lines[0].startswith("faults") and "pages: 1,024," in lines[1] and "spaces=8, tables=8" in lines[2]
    text = "\n".join(lines)
    assert all(name in text for name in (*SYNTHETIC, "domains", "trace:FILE", "trace:GUEST/MODE"))
