"""The rules of the house: which room may import which, what a door may hold, how long a file may be.

The lists of exceptions only shrink: an entry that is not needed any more fails the test.
"""
from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, NAME = ROOT / 'projects' / 'sa2va', 'sa2va_dpo'
# A room may import those before it.
ROOMS = (
    'common',
    'evaluation',
    'drawn',
    'models',
    'datasets',
    'caching',
    'inference',
    'preferences',
    'review',
    'engine',
    'parity',
    'reporting',
    'commands',
)
LONGEST = 400
MOST_LOCAL_IMPORTS = 60
READS = {
    'open',
    'read_text',
    'read_bytes',
    'read_json',
    'safe_open',
    'load_file',
    'from_pretrained',
    'listdir',
    'iterdir',
    'glob',
}

UPWARD: set[tuple[str, str]] = set()
CIRCLES: set[frozenset[str]] = set()
DOORS_WITH_LOGIC = {'tools/check_env.py'}  # it looks at the environment before the package can be imported
LONG_FILES: set[str] = set()
READING_MODELS: set[str] = set()


class Import(NamedTuple):
    source: str  # dotted module that imports
    target: str  # dotted module, or a name in one
    local: bool  # inside a function


@lru_cache(maxsize=None)
def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of the package; configs are data."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        if parts[0] not in ('configs', 'assets'):
            found['.'.join((NAME, *parts)).removesuffix('.__init__')] = ast.parse(path.read_text(encoding='utf-8'))
    return found


def _is_package(module: str) -> bool:
    return (PACKAGE / Path(*module.split('.')[1:]) / '__init__.py').is_file()


@lru_cache(maxsize=None)
def imports() -> tuple[Import, ...]:
    """Every import of our own modules, those inside functions too; imports for type checkers only are none."""
    return tuple(found for module, tree in modules().items() for found in _imports_of(module, tree))


def _imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    package = module.split('.') if _is_package(module) else module.split('.')[:-1]

    def visit(node: ast.AST, local: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            path = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
            for name in node.names:
                if path.split('.')[0] == NAME:
                    yield Import(module, f'{path}.{name.name}', local)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split('.')[0] == NAME:
                    yield Import(module, name.name, local)
        inside = local or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, False)


def room(module: str) -> str | None:
    """The room of a module; None for the package itself, ``plugins`` and other things at its top."""
    parts = module.split('.')
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def module_of(target: str) -> str:
    """The module that an import reads: the target, or what it is a name in."""
    return target if target in modules() else target.rpartition('.')[0]


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / '__init__.py').exists()}
    assert folders - {'configs'} == set(ROOMS)


def test_arrows_run_downwards():
    found = {(i.source, i.target) for i in imports() if room(i.source) and room(i.target)
             and ROOMS.index(room(i.target)) > ROOMS.index(room(i.source))}
    assert found == UPWARD, f'new: {sorted(found - UPWARD)}; not needed any more: {sorted(UPWARD - found)}'


@pytest.mark.parametrize('inner', ['evaluation', 'models.losses'])
def test_evaluation_and_losses_stand_on_common_alone(inner):
    own = f'{NAME}.{inner}'
    foreign = {(i.source, i.target) for i in imports() if f'{i.source}.'.startswith(f'{own}.')
               and not f'{i.target}.'.startswith((f'{own}.', f'{NAME}.common.'))}
    assert not foreign


def test_there_is_no_circle():
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for found in imports():
        target = module_of(found.target)
        # Whoever builds from a config has everything registered first; ``plugins`` holds nothing but that list.
        if target in graph and target != f'{NAME}.plugins' and target != found.source:
            graph[found.source].add(target)
    circles = {frozenset(part) for part in strong_components(graph) if len(part) > 1}
    assert circles == CIRCLES, f'{[sorted(circle) for circle in circles ^ CIRCLES]}'


def strong_components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: two walks in depth, the second against the arrows."""
    order: list[str] = []
    seen: set[str] = set()

    def walk(start: str, arrows: dict[str, set[str]], out: list[str]) -> None:
        stack = [(start, iter(sorted(arrows[start])))]
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            for following in rest:
                if following not in seen:
                    seen.add(following)
                    stack.append((following, iter(sorted(arrows[following]))))
                    break
            else:
                stack.pop()
                out.append(node)

    for node in graph:
        if node not in seen:
            walk(node, graph, order)
    against: dict[str, set[str]] = {node: set() for node in graph}
    for node, targets in graph.items():
        for target in targets:
            against[target].add(node)
    seen.clear()
    groups = []
    for node in reversed(order):
        if node not in seen:
            groups.append([])
            walk(node, against, groups[-1])
    return groups


def test_circles_are_found():
    groups = strong_components(dict(a={'b'}, b={'c'}, c={'a', 'd'}, d=set()))
    assert sorted(map(sorted, groups)) == [['a', 'b', 'c'], ['d']]


def test_imports_inside_functions_are_few():
    local = [i for i in imports() if i.local]
    statements = {(i.source, module_of(i.target)) for i in local}
    assert len(statements) < MOST_LOCAL_IMPORTS, sorted(statements)


def test_models_read_files_only_through_their_checkpoint_room():
    found = set()
    for module, tree in modules().items():
        if module.startswith(f'{NAME}.models.') and not f'{module}.'.startswith(f'{NAME}.models.checkpoint.'):
            names = {node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
                     for node in ast.walk(tree) if isinstance(node, ast.Call)}
            loads = any(ast.unparse(node.func) == 'torch.load' for node in ast.walk(tree) if isinstance(node, ast.Call))
            if names & READS or loads:
                found.add(module)
    assert found == READING_MODELS, f'new: {found - READING_MODELS}; not needed any more: {READING_MODELS - found}'


def test_no_file_is_long():
    found = {str(path.relative_to(ROOT)) for folder in ('projects/sa2va', 'scripts', 'tools', 'benchmarks')
             for path in (ROOT / folder).rglob('*.py') if len(path.read_text(encoding='utf-8').splitlines()) > LONGEST}
    assert found == LONG_FILES, f'new: {found - LONG_FILES}; not needed any more: {LONG_FILES - found}'


def test_doors_hold_no_logic():
    """A door puts the checkout on the path, imports a command and calls it."""
    found = set()
    for path in [*(ROOT / 'scripts').glob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.With, ast.Try, ast.Lambda,
                 ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
        branches = [node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.IfExp))]
        if any(isinstance(node, logic) for node in ast.walk(tree)) or any(
                ast.unparse(node.test) != "__name__ == '__main__'" for node in branches):
            found.add(str(path.relative_to(ROOT)))
    assert found == DOORS_WITH_LOGIC, (
        f'new: {found - DOORS_WITH_LOGIC}; not needed any more: {DOORS_WITH_LOGIC - found}'
    )
