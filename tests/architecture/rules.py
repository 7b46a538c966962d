"""Functions that find the violations of the architecture (layers.py) in a source tree.

A tree is a dict from the path of a file (``pretrain/data/storage/index.py``) to its text, so that a rule can be tried
on a violation that was made up.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.architecture.layers import (
    ASKED_AT_HOME,
    ENVIRONMENT_HOMES,
    FILE_CALLS,
    HEAVY,
    HOMES,
    IMAGE_READERS,
    KINDS,
    LEAVES,
    LIGHT,
    LIGHT_ROOMS,
    MAY_IMPORT,
    MOST_LINES,
    MOST_PARAMETERS,
    OPENING,
    PRINTERS,
    PURE,
    SHARED,
    THREAD_CALLS,
    THREAD_HOMES,
    THROUGH_DISK,
    VAGUE_NAMES,
    WEB,
    WEB_HOME,
)

Tree = Mapping[str, str]


class Import(NamedTuple):
    """One imported module, where, and whether importing the file imports it (and not a call of a function)."""

    module: str
    line: int
    at_once: bool


def read_tree(root: Path) -> dict[str, str]:
    """The source tree below ``root``."""
    files = [path for room in ("pretrain", "pipelines") for path in sorted((root / room).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def violations(tree: Tree) -> list[str]:
    """Every broken rule as ``file:line: what``."""
    found: list[str] = []
    for rule in RULES:
        found += rule(tree)
    return found


def forbidden_rooms(tree: Tree) -> Iterator[str]:
    """Imports that the table of rooms does not allow."""
    for path, entry in _all_imports(tree):
        module = module_name(path)
        owner = max((name for name in MAY_IMPORT if inside(module, name)), key=len, default=None)
        if owner is None or entry.module.split(".")[0] not in ("pretrain", "pipelines"):
            continue
        allowed = (*MAY_IMPORT[owner], *LEAVES, owner)
        if any(inside(entry.module, name) for name in allowed) or entry.module == "pretrain":
            continue
        yield f"{path}:{entry.line}: {owner} must not import {entry.module}"


def other_stages(tree: Tree) -> Iterator[str]:
    """Imports between the stages of pipelines, or from a shared folder upwards."""
    for path, entry in _all_imports(tree):
        importer, imported = module_name(path), entry.module
        if not imported.startswith("pipelines.") or not importer.startswith("pipelines"):
            continue
        own, other = (*importer.split("."), "")[1], imported.split(".")[1]
        if imported.split(".")[2:3] == ["cli"] and other not in SHARED:
            yield f"{path}:{entry.line}: {imported}: nothing imports a stage's cli; move what is needed beside it"
        elif other not in (own, *SHARED.get(own, SHARED)):
            allowed = ", ".join(SHARED.get(own, SHARED)) or "none of the others"
            yield f"{path}:{entry.line}: pipelines.{own} must not import {imported}; it may import {allowed}"


def import_cycles(tree: Tree) -> Iterator[str]:
    """Modules that import each other, whether when they are imported or inside a function."""
    modules = {module_name(path): path for path in tree}
    for ring in rings_of(tree):
        yield f"{modules[min(ring)]}:1: {', '.join(sorted(ring))} import each other: move down what several need"


def rings_of(tree: Tree) -> set[frozenset[str]]:
    """Largest sets of modules each of which imports every other, perhaps through further ones."""
    graph: dict[str, set[str]] = {module_name(path): set() for path in tree}
    for path, entry in _all_imports(tree):
        module = module_name(path)
        known = (name for name in (entry.module, entry.module.rpartition(".")[0]) if name in graph)
        graph[module] |= {next(known, module)} - {module}
    reached = {module: _reachable(graph, module) for module in graph}
    rings = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return rings - {frozenset()}


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        if (module := left.pop()) not in found:
            found.add(module)
            left += graph[module]
    return found


def impure_calls(tree: Tree) -> Iterator[str]:
    """Files and standard output used by modules that only compute."""
    for path, text in tree.items():
        module = module_name(path)
        if not any(inside(module, home) for home in PURE):
            continue
        for node in ast.walk(_parse(text)):
            if isinstance(node, ast.Call) and (_is_file_call(node) or ast.unparse(node.func) in ("print", "tell")):
                yield f"{path}:{node.lineno}: {ast.unparse(node)[:60]}: read and write elsewhere; this only computes"


def strangers(tree: Tree) -> Iterator[str]:
    """Outside libraries away from their home."""
    for path, entry in _all_imports(tree):
        library = entry.module.split(".")[0]
        homes = HOMES.get(library)
        if homes is not None and not any(inside(module_name(path), home) for home in homes):
            yield f"{path}:{entry.line}: {library} belongs to {', '.join(homes)}"


def web_requests(tree: Tree) -> Iterator[str]:
    """Other ways to a web server than the product's own; ``from urllib import request`` is one."""
    for path, text in tree.items():
        if module_name(path) == WEB_HOME:
            continue
        for entry in imports_of(path, text):
            if entry.module in WEB or entry.module.split(".")[0] in WEB - {"urllib", "http"}:
                yield f"{path}:{entry.line}: URLs are read by {WEB_HOME} only, not by {entry.module}"


def environment_reads(tree: Tree) -> Iterator[str]:
    """``os.environ`` and ``os.getenv`` away from their homes."""
    for path, text in tree.items():
        if any(inside(module_name(path), home) for home in ENVIRONMENT_HOMES):
            continue
        for node in ast.walk(_parse(text)):
            name = node.attr if isinstance(node, ast.Attribute) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else [name]
            if {"environ", "getenv", "putenv"} & set(names):
                assert isinstance(node, (ast.Attribute, ast.ImportFrom))
                yield f"{path}:{node.lineno}: the environment is read in {', '.join(ENVIRONMENT_HOMES)} only"


def started_threads(tree: Tree) -> Iterator[str]:
    """Threads that are started away from their home, where they get a name and their errors are reported."""
    for path, text in tree.items():
        if module_name(path) in THREAD_HOMES:
            continue
        for node in ast.walk(_parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in THREAD_CALLS:
                yield f"{path}:{node.lineno}: start threads with {THREAD_HOMES[0]}"


def heavy_imports(tree: Tree) -> Iterator[str]:
    """Modules that must be light but import something heavy, directly or through others."""
    modules = {module_name(path): path for path in tree}
    for module, path in modules.items():
        if module not in LIGHT and not any(inside(module, room) for room in LIGHT_ROOMS):
            continue
        chain = _way_to_heavy(module, modules, tree)
        if chain:
            yield f"{path}:1: {' → '.join(chain)}: this module must not import it"


def vague_names(tree: Tree) -> Iterator[str]:
    """Files and folders whose name says nothing."""
    for path in tree:
        for part in Path(path).with_suffix("").parts:
            if part.strip("_") in VAGUE_NAMES or part.endswith(("_utils", "_helpers")):
                yield f"{path}:1: {part} says nothing; name the file after what it does"


def importing_inits(tree: Tree) -> Iterator[str]:
    """Package files that import something: importing a package must cost nothing."""
    for path, text in tree.items():
        for entry in imports_of(path, text) if path.endswith("__init__.py") else ():
            if entry.module.split(".")[0] != "__future__":
                yield f"{path}:{entry.line}: a package file imports nothing; import {entry.module} where it is used"


def oversized_functions(tree: Tree) -> Iterator[str]:
    """Functions that are too long or have too many parameters, and no comment that gives the reason."""
    for path, text in tree.items():
        lines = text.split("\n")
        for node in ast.walk(_parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            first, last = min([node.lineno, *(mark.lineno for mark in node.decorator_list)]), node.end_lineno or 0
            comments = [line.partition("#")[2].strip() for line in lines[max(0, first - 2) : last] if "#" in line]
            num_lines, num_parameters = last - node.lineno + 1, _num_parameters(node.args)
            for name, number, most in (
                ("long", num_lines, MOST_LINES),
                ("many", num_parameters, MOST_PARAMETERS),
            ):
                if number > most and not any(c.startswith(f"{name}: ") for c in comments):
                    of = "lines" if name == "long" else "parameters"
                    yield (
                        f"{path}:{node.lineno}: {node.name} has {number} {of}, the limit is {most}: split it, "
                        f"or give the reason in a comment `# {name}: …`"
                    )


def _num_parameters(arguments: ast.arguments) -> int:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    num_named = sum(argument.arg not in ("self", "cls") for argument in named)
    return num_named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def compared_variants(tree: Tree) -> Iterator[str]:
    """Code that tests which variant it has instead of asking the variant."""
    for path, text in tree.items():
        module = module_name(path)
        for node in ast.walk(_parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in ASKED_AT_HOME:
                homes = ASKED_AT_HOME[node.attr]
                if module not in homes:
                    yield f"{path}:{node.lineno}: {ast.unparse(node)} is read in {', '.join(homes)} only; ask its owner"
            elif isinstance(node, ast.Compare):
                for side in (node.left, *node.comparators):
                    if _is_kind_name(side):
                        yield f"{path}:{node.lineno}: {ast.unparse(node)}: ask what its kind declares, not for its name"


def _is_kind_name(node: ast.expr) -> bool:
    """Whether it is the name of a setting in ``KINDS``, such as ``experiment.objective.name``."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    return KINDS.get(owner) == node.attr


def bare_prints(tree: Tree) -> Iterator[str]:
    """``print`` where ``tell`` keeps names with control characters away from the terminal."""
    for path, text in tree.items():
        if any(inside(module_name(path), home) for home in PRINTERS):
            continue
        for node in ast.walk(_parse(text)):
            if isinstance(node, ast.Name) and node.id == "print":
                yield f"{path}:{node.lineno}: print with pretrain.names.tell, which escapes what a terminal would obey"


def image_openers(tree: Tree) -> Iterator[str]:
    """``Image.open`` and other readers of image files away from the one place that names the formats."""
    for path, text in tree.items():
        if module_name(path) == OPENING:
            continue
        for node in ast.walk(_parse(text)):
            is_reader = isinstance(node, ast.Attribute) and (
                node.attr in IMAGE_READERS or (node.attr == "open" and ast.unparse(node.value).endswith("Image"))
            )
            is_import = isinstance(node, ast.ImportFrom) and (
                (node.module == "PIL.Image" and any(alias.name == "open" for alias in node.names))
                or any(alias.name in IMAGE_READERS for alias in node.names)
            )
            if is_reader or is_import:
                assert isinstance(node, (ast.Attribute, ast.ImportFrom))
                yield f"{path}:{node.lineno}: images are opened in {OPENING} only, which names the formats"


def direct_file_calls(tree: Tree) -> Iterator[str]:
    """Calls of the file system by what must go through ``pretrain.disk``; a library's own inside ``*_with`` is none."""
    for path, text in tree.items():
        module = module_name(path)
        if not any(inside(module, home) for home in THROUGH_DISK):
            continue
        parsed = _parse(text)
        handed_over = {id(inner) for call in _calls_with(parsed) for inner in ast.walk(call)}
        for node in ast.walk(parsed):
            if not isinstance(node, ast.Call) or id(node) in handed_over:
                continue
            if _is_file_call(node):
                called = ast.unparse(node)[:60]
                yield f"{path}:{node.lineno}: {called}: a run folder is written and read through pretrain.disk"


def _is_file_call(node: ast.Call) -> bool:
    """By its name, less namesakes: a run folder is opened, strings and dataclasses have a ``replace``."""
    if isinstance(node.func, ast.Name):
        return node.func.id in FILE_CALLS - {"replace"}
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in FILE_CALLS:
        return False
    of = ast.unparse(node.func.value)
    if of == "disk.current":
        return False
    if node.func.attr == "open":
        return of in ("os", "io")
    return node.func.attr != "replace" or of == "os" or len(node.args) == 1


def _calls_with(parsed: ast.Module) -> Iterator[ast.AST]:
    """Calls of ``disk.current.read_with`` and ``write_with``, and functions that they are given by name."""
    given: set[str] = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_with"):
            given |= {argument.id for argument in node.args if isinstance(argument, ast.Name)}
            yield node
    yield from (node for node in parsed.body if isinstance(node, ast.FunctionDef) and node.name in given)


RULES = (
    direct_file_calls,
    forbidden_rooms,
    other_stages,
    import_cycles,
    impure_calls,
    strangers,
    web_requests,
    environment_reads,
    started_threads,
    heavy_imports,
    vague_names,
    importing_inits,
    oversized_functions,
    compared_variants,
    bare_prints,
    image_openers,
)


def module_name(path: str) -> str:
    """``pretrain/data/storage/index.py`` → ``pretrain.data.storage.index``; a package's file is the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def imports_of(path: str, text: str) -> tuple[Import, ...]:
    """Every import in a file, those inside functions too; not those for type checkers alone."""
    return tuple(_imports_of(path, text))


def _imports_of(path: str, text: str) -> Iterator[Import]:
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node, at_once in _import_nodes(_parse(text).body, True):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_once) for alias in node.names)
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield Import(whole if source.startswith(("pretrain", "pipelines")) else source, node.lineno, at_once)


def _import_nodes(body: list[ast.stmt], at_once: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, at_once
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            # Types may be named across rooms: that imports nothing. The else branch does.
            yield from _import_nodes(node.orelse, at_once)
        else:
            inside = at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for name in ("body", "orelse", "finalbody"):
                yield from _import_nodes(getattr(node, name, []), inside)
            for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                yield from _import_nodes(part.body, inside)


@functools.cache
def _parse(text: str) -> ast.Module:
    """The syntax tree of a file, kept: every rule asks for it."""
    return ast.parse(text)


def _all_imports(tree: Tree) -> Iterator[tuple[str, Import]]:
    for path, text in tree.items():
        yield from ((path, entry) for entry in imports_of(path, text))


def inside(module: str, name: str) -> bool:
    """Whether ``module`` is ``name`` or below it."""
    return module == name or module.startswith(f"{name}.")


def _way_to_heavy(start: str, modules: Mapping[str, str], tree: Tree) -> list[str]:
    """The shortest chain of imports from ``start`` to a heavy library, or nothing."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop(0)
        for entry in imports_of(modules[way[-1]], tree[modules[way[-1]]]):
            if not entry.at_once:
                continue
            if entry.module.split(".")[0] in HEAVY or entry.module.startswith("safetensors.torch"):
                return [*way, entry.module]
            for known in (entry.module, entry.module.rpartition(".")[0]):  # a module, or a name in one
                if known in modules and known not in seen:
                    seen.add(known)
                    ways.append([*way, known])
                    break
    return []
