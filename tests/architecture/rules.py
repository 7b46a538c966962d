"""Who may import whom, as data, and the functions that find what breaks it in a source tree.

A tree is a dict from the path of a file (``pretrain/data/index.py``) to its text, so that a rule can be tried on a
violation that was made up.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

Tree = Mapping[str, str]

# Leaf modules, that every room may import.
LEAVES = frozenset({"pretrain.errors", "pretrain.files", "pretrain.seeds"})
EVERYTHING = "pretrain"

# Module or room → the modules and rooms that it may import. The longest prefix that fits a module decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "pretrain.errors": (),
    "pretrain.files": (),
    "pretrain.seeds": (),
    "pretrain.config": (),
    "pretrain.distributed": (),
    "pretrain.models": ("pretrain.config",),
    "pretrain.objectives": ("pretrain.models", "pretrain.config"),
    "pretrain.data": ("pretrain.config", "pretrain.distributed"),
    "pretrain.optim": ("pretrain.config", "pretrain.distributed"),
    "pretrain.telemetry": ("pretrain.config", "pretrain.distributed"),
    "pretrain.evaluation": ("pretrain.config", "pretrain.models", "pretrain.data", "pretrain.distributed"),
    "pretrain.engine": (
        "pretrain.config",
        "pretrain.distributed",
        "pretrain.telemetry",
        "pretrain.optim",
        "pretrain.objectives.protocol",
    ),
    "pretrain.check": (EVERYTHING,),
    "pretrain.build": (EVERYTHING,),
    "pretrain.simulate": (EVERYTHING,),
    "pretrain.run": (
        "pretrain.build",
        "pretrain.check",
        "pretrain.config",
        "pretrain.distributed",
        "pretrain.engine",
        "pretrain.simulate",
        "pretrain.telemetry",
    ),
    "pipelines": (EVERYTHING,),
}

# Outside library → the only places that may import it.
HOMES: dict[str, tuple[str, ...]] = {
    "deepspeed": ("pretrain.engine.deepspeed_backend", "pretrain.engine.backends"),
    "accelerate": ("pretrain.engine.accelerate_backend", "pretrain.engine.backends"),
    "webdataset": ("pretrain.data", "pipelines.packing", "pipelines.verification"),
    "yaml": ("pretrain.config.loader",),
    "subprocess": ("pipelines", "pretrain.data.pipe_transport"),
    "urllib3": ("pretrain.data.http_transport", "pretrain.data.s3_transport"),
    "boto3": ("pretrain.data.s3_transport",),
    "botocore": ("pretrain.data.s3_transport",),
    "rich": ("pretrain.telemetry", "pipelines"),
    "wandb": ("pretrain.telemetry",),
    "matplotlib": ("pipelines.drawing", "pipelines.figures"),
    "sklearn": ("pipelines.sources", "pretrain.evaluation.logistic"),
    "cv2": ("pretrain.data", "pipelines.sources", "pipelines.packing", "pipelines.deduplication"),
    "PIL": ("pretrain.data", "pipelines.sources", "pipelines.packing", "pipelines.deduplication"),
    "pyarrow": ("pipelines.sources.parquet",),
    "safetensors": ("pretrain.models", "pretrain.engine", "pretrain.data"),
}
ENVIRONMENT_HOMES = ("pretrain.distributed", "pipelines")

# Importing these must import none of the heavy libraries, also not through others.
HEAVY = frozenset(
    {"torch", "torchvision", "webdataset", "cv2", "deepspeed", "accelerate", "timm", "tensorboard", "wandb"}
)
LIGHT = (
    "pretrain",
    "pretrain.errors",
    "pretrain.files",
    "pretrain.seeds",
    "pretrain.config",
    "pretrain.data.index",
    "pretrain.data.lanes",
    "pretrain.data.order",
    "pretrain.data.sources",
    "pretrain.engine.run_folder",
    "pretrain.models.architecture",
    "pretrain.models.cost",
    "pretrain.models.variants",
    "pretrain.models.zero_memory",
    "pretrain.run",
    "pipelines",
    "pipelines.__main__",
    "pipelines.plan",
    "pipelines.planning",
    "pipelines.chain",
    "pipelines.run_record",
    "pipelines.status",
    "pipelines.probes.judgement",
    "pipelines.probes.node",
)
LIGHT_ROOMS = ("pretrain.check", "pretrain.config", "pipelines.slurm")

VAGUE_NAMES = frozenset({"utils", "util", "misc", "common", "helpers", "helper"})


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
    for rule in (forbidden_rooms, strangers, environment_reads, heavy_imports, vague_names, importing_inits):
        found += rule(tree)
    return found


def forbidden_rooms(tree: Tree) -> Iterator[str]:
    """Imports that the table of rooms does not allow."""
    for path, entry in _all_imports(tree):
        module = module_name(path)
        owner = max((name for name in MAY_IMPORT if inside(module, name)), key=len, default=None)
        if owner is None or entry.module.split(".")[0] not in ("pretrain", "pipelines"):
            continue
        room = ".".join(owner.split(".")[:2]) if module.startswith("pretrain.") else "pipelines"
        allowed = (*MAY_IMPORT[owner], *LEAVES, room)
        if not any(inside(entry.module, name) for name in allowed) and entry.module != "pretrain":
            yield f"{path}:{entry.line}: {owner} must not import {entry.module}"


def strangers(tree: Tree) -> Iterator[str]:
    """Outside libraries away from their home."""
    for path, entry in _all_imports(tree):
        library = entry.module.split(".")[0]
        homes = HOMES.get(library)
        if homes is not None and not any(inside(module_name(path), home) for home in homes):
            yield f"{path}:{entry.line}: {library} belongs to {', '.join(homes)}"


def environment_reads(tree: Tree) -> Iterator[str]:
    """``os.environ`` and ``os.getenv`` away from their homes."""
    for path, text in tree.items():
        if any(inside(module_name(path), home) for home in ENVIRONMENT_HOMES):
            continue
        for node in ast.walk(ast.parse(text)):
            name = node.attr if isinstance(node, ast.Attribute) else None
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else [name]
            if {"environ", "getenv", "putenv"} & set(names):
                assert isinstance(node, (ast.Attribute, ast.ImportFrom))
                yield f"{path}:{node.lineno}: the environment is read in {', '.join(ENVIRONMENT_HOMES)} only"


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


def module_name(path: str) -> str:
    """``pretrain/data/index.py`` → ``pretrain.data.index``; a package's file is the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(path: str, text: str) -> Iterator[Import]:
    """Every import in a file, those inside functions too; not those for type checkers alone."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node, at_once in _import_nodes(ast.parse(text).body, True):
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
            # Types may be named across rooms; they are no import. What stands in the else is.
            yield from _import_nodes(node.orelse, at_once)
        else:
            inside = at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for name in ("body", "orelse", "finalbody"):
                yield from _import_nodes(getattr(node, name, []), inside)
            for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                yield from _import_nodes(part.body, inside)


def _all_imports(tree: Tree) -> Iterator[tuple[str, Import]]:
    for path, text in tree.items():
        yield from ((path, entry) for entry in imports_of(path, text))


def inside(module: str, name: str) -> bool:
    """Whether ``module`` is ``name`` or lies below it."""
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
