"""What a workflow's processor has in force, and what may take its place between two frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stream.processor import Params
from workflows.compiler import Program
from workflows.graph import Graph
from workflows.parameters import ParameterTable
from workflows.plan import Plan
from workflows.registry import NodeRegistry
from workflows.sound import Ear
from workflows.stream_rules import Modalities, modalities


@dataclass(frozen=True)
class Tabled:
    """The parameters of graphs."""

    graphs: tuple[Graph, ...]
    table: ParameterTable

    @classmethod
    def of(cls, graphs: Sequence[Graph], registry: NodeRegistry) -> Tabled:
        return cls(tuple(graphs), ParameterTable(graphs, registry.definitions))

    def are(self, graphs: Sequence[Graph]) -> bool:
        """Whether these are the graphs, and not just graphs like them."""
        return list(map(id, self.graphs)) == list(map(id, graphs))


@dataclass(frozen=True)
class Running:
    """What is in force; replaced as a whole between two frames."""

    plans: tuple[Plan, ...]
    table: ParameterTable
    is_passthrough: bool
    media: Modalities
    ears: tuple[Ear, ...]
    may_change: bool

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        registry: NodeRegistry,
        ears: tuple[Ear, ...] = (),
        tabled: Tabled | None = None,
    ) -> Running:
        graphs = [plan.graph for plan in plans]
        if tabled is None or not tabled.are(graphs):
            tabled = Tabled.of(graphs, registry)
        return cls(
            tuple(plans),
            tabled.table,
            all(plan.is_passthrough for plan in plans),
            modalities(graphs),
            ears or tuple(Ear() for _ in plans),
            any(plan.may_change for plan in plans),
        )


@dataclass(frozen=True)
class Change:
    """Worked out for ``params`` on top of what was ``running``.

    Either other ``programs`` of the same plans, each with the one that it was made from, and the parameters
    that there are then, or a ``replacement``.
    """

    running: Running
    params: Params
    programs: tuple[tuple[Plan, Program, Program], ...] = field(default=())
    replacement: Running | None = None
    tabled: Tabled | None = None

    def fits(self, running: Running) -> bool:
        """Whether it may still be put in force. Constants that were made anew since (IS_CHANGED) are no
        reason against another workflow."""
        return self.running.plans == running.plans and all(
            plan.program is base for plan, base, _ in self.programs
        )

    def in_force(self, registry: NodeRegistry) -> Running:
        """Let its programs take effect; what is in force from then on."""
        for plan, _, program in self.programs:
            plan.commit(program)
        running = self.running
        return self.replacement or Running.of(running.plans, registry, running.ears, self.tabled)
