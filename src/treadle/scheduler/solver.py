"""A policy that solves for the best placement of several requests at once (OR-Tools CP-SAT).

Needs the extra `solver`. One request alone is placed by best fit: there is nothing to solve.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ortools.sat.python import cp_model

from treadle.scheduler.columns import BoolArray, HostColumns
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.policies import BestFit

CHOICES = 32
"""How many hosts are considered for each request: those that best fit likes most."""
EFFORT = 4.0
"""How much work a solution may take, in CP-SAT's deterministic seconds."""


class Solver(BestFit):
    """Places a batch so that as much of it as can be fits, on as few hosts as can be.

    Maximise sum over requests of placed * (1 + hosts considered) * weight - empty hosts begun,
    where weight = 1 + vcpus; subject to what is free of vcpus, memory and disk on each host (a
    host's image counted once for each request that brings it), and within a batch (requests with
    the same `batch`) to the group rules "affinity" and "anti-affinity" with `max_per_host`. Exact
    vector bin packing over the hosts considered, within a bound of work; the same input gives the
    same answer.
    """

    def place(
        self, requests: Sequence[PlacementRequest], hosts: HostColumns, passing: BoolArray, /
    ) -> Sequence[int | None]:
        """Give a host id for each request, None where it is left out."""
        model = cp_model.CpModel()
        here: dict[int, list[tuple[int, cp_model.IntVar]]] = defaultdict(list)
        choices: list[dict[int, cp_model.IntVar]] = []
        for number, rows in enumerate(self._considered(requests, hosts, passing)):
            choices.append({})
            for row in rows:
                chosen = model.new_bool_var(f"{number}@{row}")
                choices[-1][row] = chosen
                here[row].append((number, chosen))
            model.add_at_most_one(choices[-1].values())

        begun = []
        for row, some in here.items():
            needs = [_needs(requests[number], hosts, row) for number, _ in some]
            free = hosts.free_vcpus[row], hosts.free_memory_mib[row], hosts.free_disk_mib[row]
            for resource in range(3):
                model.add(
                    sum(need[resource] * chosen
                        for need, (_, chosen) in zip(needs, some, strict=True))
                    <= int(free[resource])
                )
            if not hosts.instances[row]:
                used = model.new_bool_var(f"used@{row}")
                for _, chosen in some:
                    model.add_implication(chosen, used)
                begun.append(used)
        _keep_groups(model, requests, hosts, choices)
        worth = 1 + len(begun)
        model.maximize(
            sum(worth * (1 + request.vcpus) * chosen
                for request, some in zip(requests, choices, strict=True)
                for chosen in some.values())
            - sum(begun)
        )
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_deterministic_time = EFFORT
        solver.parameters.random_seed = requests[0].seed % 2**31 if requests else 0
        status = solver.solve(model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return [None] * len(requests)
        return [
            next((int(hosts.ids[row]) for row, chosen in some.items()
                  if solver.boolean_value(chosen)), None)
            for some in choices
        ]

    def _considered(
        self, requests: Sequence[PlacementRequest], hosts: HostColumns, passing: BoolArray
    ) -> list[list[int]]:
        """The rows considered for each request: those it likes most, and all that others like."""
        liked: list[set[int]] = []
        for request, mask in zip(requests, passing, strict=True):
            scores = np.where(mask, self.score(hosts, request), -np.inf)
            best = np.argsort(-scores, kind="stable")[:CHOICES + len(requests)]
            liked.append({int(row) for row in best if mask[row]})
        every = sorted(set().union(*liked)) if liked else []
        return [
            [row for row in every if passing[number, row]] for number in range(len(requests))
        ]


def _needs(request: PlacementRequest, hosts: HostColumns, row: int) -> tuple[int, int, int]:
    disk = hosts.view(row).disk_need_mib(request)
    return request.vcpus, request.memory_mib, disk


def _keep_groups(
    model: cp_model.CpModel, requests: Sequence[PlacementRequest], hosts: HostColumns,
    choices: Sequence[dict[int, cp_model.IntVar]],
) -> None:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        if request.batch is not None and request.group in ("affinity", "anti-affinity"):
            groups[request.batch, request.group].append(number)
    for (_, rule), members in groups.items():
        rows = sorted(set().union(*(choices[number] for number in members)))
        if rule == "anti-affinity":
            there = dict(requests[members[0]].group_hosts)
            for row in rows:
                most = requests[members[0]].max_per_host - there.get(int(hosts.ids[row]), 0)
                model.add(
                    sum(choices[n][row] for n in members if row in choices[n]) <= max(most, 0)
                )
            continue
        anchor = {row: model.new_bool_var(f"anchor@{row}") for row in rows}
        model.add_at_most_one(anchor.values())
        for number in members:
            for row, chosen in choices[number].items():
                model.add_implication(chosen, anchor[row])
