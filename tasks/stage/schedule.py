"""Which nodes of a stage start next: the rules, without threads, processes or Prefect.

- A node starts when all its inputs are made; of several the longest first (`Node.length`), then in the order of
  declaration.
- Light nodes run beside each other, up to a limit; trainings have a lower limit of their own.
- An exclusive node runs alone: it starts when nothing else runs, and nothing starts beside it.
- After a failure nothing new starts but trainings that do not need what failed: the variants of a sweep do not wait for
  each other's repair. After a request to stop nothing does. What runs may end.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Node

if TYPE_CHECKING:
    from tasks.stage.runner import Resolution


@dataclass
class Schedule:
    """The nodes of a stage, from waiting to ended. The caller starts what `next` returns and reports to `ended`."""

    waiting: list[Node]
    limit: int = 8
    """Nodes that run beside each other."""
    trainings: int = 1
    """How many of these may be trainings."""
    stop: Callable[[], bool] = lambda: False
    length: Callable[[Node], float] = lambda node: 0.0
    """Of a node whose inputs are made, in any unit."""
    running: dict[str, Node] = field(default_factory=dict)
    failure: BaseException | None = None
    """What the first node that failed raised."""
    _asked: bool = False
    """`next` was called since the last node ended."""

    def __post_init__(self) -> None:
        self.waiting = list(self.waiting)  # the caller's own stays

    @property
    def over(self) -> bool:
        """Nothing runs, and nothing will."""
        return not self.running and (not self.waiting or (self.failure is not None and self._asked))

    def next(self, done: Container[str]) -> list[Node]:
        """The nodes to start now; they count as running from here on. `done` holds the names of the nodes made.

        Raises RuntimeError when all that is left waits for nodes that nobody makes.
        """
        self._asked = True
        if stopped := bool(self.waiting) and self.stop():
            self.failure = self.failure or NodeError(f"stopped before {self.waiting[0].name}")
        if stopped or any(node.exclusive for node in self.running.values()):
            return []
        ready = [n for n in self.waiting if all(ref.node in done for ref in n.sources.values())]
        if self.failure is not None:
            ready = [node for node in ready if node.trains]
        ready.sort(key=self.length, reverse=True)  # equals keep their order
        started = [node for node in ready if not node.exclusive and self._start_light(node)]
        if not self.running:
            started = [node for node in ready if node.exclusive][:1]
            self._start(started)
        if self.waiting and not self.running and self.failure is None:
            raise RuntimeError(f"nodes wait for each other: {[node.name for node in self.waiting]}")
        return started

    def ended(self, name: str, failure: BaseException | None = None) -> None:
        """A running node has ended, with what it raised if it failed."""
        self._asked = False
        del self.running[name]
        self.failure = self.failure or failure

    def _start_light(self, node: Node) -> bool:
        trainings = sum(other.trains for other in self.running.values())
        if len(self.running) >= self.limit or (node.trains and trainings >= self.trainings):
            return False
        self._start([node])
        return True

    def _start(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.waiting.remove(node)
            self.running[node.name] = node


def finished(
    nodes: Iterable[Node],
    resolve: Callable[[Node, Mapping[str, Artifact]], Resolution],
    done: Mapping[str, Artifact],
) -> list[Resolution]:
    """How each of the nodes is reused, if all of them can be; else an empty list. Nothing is adopted.

    `nodes` are in the order of the graph: a node may read one before it. `done` are the artifacts so far.
    """
    resolutions: list[Resolution] = []
    known: ChainMap[str, Artifact] = ChainMap({}, dict(done))
    for node in nodes:
        resolution = resolve(node, known)
        if resolution.artifact is None:
            return []
        known[node.name] = resolution.artifact
        resolutions.append(resolution)
    return resolutions
