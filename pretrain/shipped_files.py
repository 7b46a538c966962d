"""Files of the product that are not code: recipes and tables (``configs/``) and job scripts (``slurm/``).

In a checkout both folders are at the top, and the links in ``pretrain/shipped`` lead to them. A wheel has copies
instead of the links.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pretrain.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent / "shipped"
CONFIGS = (SHIPPED / "configs").resolve()
JOB_SCRIPTS = (SHIPPED / "slurm").resolve()
RECIPE = "recipe:"


def located(name: str) -> str:
    """The path of a config: the shipped file for ``recipe:NAME``, and any other name as it is.

    Args:
        name: a path; or ``recipe:`` and the name of a file in ``configs/`` without its extension, with as many of its
            folders as tell it from others: ``recipe:vit_h14_jft300m``, ``recipe:finetune/demo_digits``.

    Raises:
        ConfigError: no recipe has this name, or several have; the message lists the nearest, or all of them.
    """
    if not name.startswith(RECIPE):
        return name
    wanted = name.removeprefix(RECIPE).removesuffix(".yaml")
    found = [recipe for recipe in recipes() if recipe == wanted or recipe.endswith(f"/{wanted}")]
    if len(found) == 1:
        return _shortest(CONFIGS / f"{found[0]}.yaml")
    if found:
        raise ConfigError(f"{name}: several recipes have this name; write {_listed(found)}")
    names = {place: recipe for recipe in recipes() for place in (recipe, recipe.rpartition("/")[2])}
    near = [names[place] for place in difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)]
    hint = f"did you mean {_listed(list(dict.fromkeys(near)))}?" if near else "one is recipe:vit_b16_i1k"
    raise ConfigError(f"{name}: no such recipe in {CONFIGS}; {hint}")


def recipes() -> list[str]:
    """Every shipped config without its extension, relative to ``configs/``: ``pretrain/vit_h14_jft300m``, …"""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def _listed(names: list[str]) -> str:
    return " or ".join(f"{RECIPE}{name}" for name in names)


def _shortest(path: Path) -> str:
    """The path relative to the working folder if it is inside."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
