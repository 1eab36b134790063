"""Domains beside each other, measured."""

from __future__ import annotations

from harness.compare.domains import RUNS, measure_domains
from harness.compare.plan import DOMAIN_RUNS
from harness.workload.domains import Domains


def test_a_greedy_neighbour_costs_a_quiet_domain_faults_only_where_they_share() -> None:
    told: list[tuple[str, str]] = []
    found = measure_domains(1, Domains(tables=64, rounds=2), lambda *words: told.append(words))
    assert len(told) == len(found) == RUNS == DOMAIN_RUNS
    assert told[0] == ("xi pool=reserved", "domains beside none")
    domains = {(one.pool, one.neighbour): one for one in found}
    alone, beside = (domains["reserved", neighbour] for neighbour in ("none", "greedy"))
    assert alone.faults.calls == beside.faults.calls > 0
    assert alone.faults.words == beside.faults.words
    shared = domains["shared", "greedy"]
    assert shared.faults.calls > 2 * domains["shared", "none"].faults.calls
    assert shared.counters["lost"] > 0 and shared.counters["faults"] <= shared.faults.calls
    assert shared.whole.total_us is not None and shared.whole.total_us > 0
