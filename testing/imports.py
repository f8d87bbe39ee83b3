"""Import circles: groups of modules of which each imports every other, directly or through others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testing.sources import Finding, Source

Graph = Mapping[str, Mapping[str, int]]
"""Modules that each module imports, with the line of the first import."""


@dataclass(frozen=True, slots=True)
class Circle:
    """Modules that import each other, and the import lines that make it so."""

    modules: tuple[str, ...]
    arrows: tuple[Finding, ...]


def find_circles(sources: Sequence[Source], *, for_types: bool = True) -> list[Circle]:
    """Finds the circles (strongly connected components of more than one module), largest first.

    Every import counts wherever it stands, inside a function too. `for_types` says whether those under
    `if TYPE_CHECKING:` count. `from .a import b` is an arrow to module `a.b` if there is one, else to `a`; that
    importing `a.b` also runs the `__init__` of `a` doesn't count.
    """
    graph = import_graph(sources, for_types=for_types)
    paths = {source.module: source.path for source in sources}
    found = []
    for group in strongly_connected(graph):
        arrows = [
            Finding(path=paths[module], line=line, text=f"{module} imports {target}")
            for module in group
            for target, line in graph[module].items()
            if target in group
        ]
        found.append(Circle(tuple(group), tuple(arrows)))
    return sorted(found, key=lambda circle: (-len(circle.modules), circle.modules))


def import_graph(sources: Sequence[Source], *, for_types: bool) -> dict[str, dict[str, int]]:
    """Builds the graph of the imports among `sources`; imports of anything else are left out."""
    modules = {source.module for source in sources}
    graph: dict[str, dict[str, int]] = {module: {} for module in sorted(modules)}
    for source in sources:
        for line, names in _imports(source, for_types=for_types):
            target = next((name for name in names if name in modules), source.module)
            if target != source.module:
                graph[source.module].setdefault(target, line)
    return graph


def strongly_connected(graph: Graph) -> list[list[str]]:
    """Finds the groups of more than one node of which each can be reached from each other."""
    reached = {node: _reachable(graph, node) for node in graph}
    groups = {tuple(sorted(m for m in reached[node] if node in reached[m])) for node in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    pending = [start]
    while pending:
        new = [target for target in graph[pending.pop()] if target not in found]
        found.update(new)
        pending += new
    return found


def _imports(source: Source, *, for_types: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields each import's line and the module names it may mean, the longest first."""
    skipped = set() if for_types else _under_type_checking(source.tree)
    for node in ast.walk(source.tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, (alias.name,)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(source, node)
            yield from ((node.lineno, (f"{base}.{alias.name}", base)) for alias in node.names)


def _base(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.path.parent.parts
    parents = parts[: len(parts) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _under_type_checking(tree: ast.Module) -> set[ast.AST]:
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
