"""Checks that installed packages are in the version ranges that the project was tested with.

The ranges are read from the metadata of the installed project, so that they are written only in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement

from pretrain.errors import SetupError

PROJECT = "vit-pretrain"
# Faults of versions outside the range that are worse than an error.
KNOWN_FAULTS = {
    "deepspeed": "0.17.6 to 0.18.2 accumulate wrongly at ZeRO-2 (norms off by 34 to 57 %), 0.17.5 reports and "
    "clips a norm 67,000 times too large with autocast at ZeRO-1, 0.16.9 and 0.17.1 ignore autocast",
}


class Package(NamedTuple):
    """A dependency: its name, the installed version, and the allowed range."""

    name: str
    installed: str
    allowed: str

    @property
    def problem(self) -> str:
        """The problem with the installed version, for messages."""
        fault = KNOWN_FAULTS.get(self.name)
        return f"{self.name} {self.installed} is installed, {self.allowed} is needed" + (f" ({fault})" if fault else "")

    @property
    def remedy(self) -> str:
        """The command that installs an allowed version."""
        return f"pip install '{self.name}{self.allowed}'"


def outside_range() -> list[Package]:
    """Every installed dependency with a version that the project was not tested with.

    Raises:
        SetupError: the project itself is not installed, so the ranges are unknown.
    """
    return [package for package, requirement in _installed() if not _allows(requirement, package.installed)]


def check_library(backend: str) -> None:
    """Checks the library behind a backend, if it has known faults; ``doctor`` reports the other packages.

    Raises:
        SetupError: it is missing, or its version may train wrongly without an error.
    """
    if backend not in KNOWN_FAULTS:
        return
    found = next((package for package, _ in _installed() if package.name == backend), None)
    if found is None:
        raise SetupError(f"{backend} is not installed: pip install -e ., or cluster.backend: accelerate")
    if any(package.name == backend for package in outside_range()):
        raise SetupError(f"{found.problem}: {found.remedy}, or cluster.backend: accelerate")


def _installed() -> Iterator[tuple[Package, Requirement]]:
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError as error:
        raise SetupError(
            f"the package {PROJECT} is not installed, so the versions of its dependencies cannot be checked: "
            "pip install -e ."
        ) from error
    for requirement in map(Requirement, lines):
        if not requirement.specifier:  # the project's own extras
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:  # belongs to an extra; a missing dependency fails at its import
            continue
        yield Package(requirement.name, version, str(requirement.specifier)), requirement


def _allows(requirement: Requirement, version: str) -> bool:
    # Vendor builds count as pre-releases: 2.9.0a0+gitabc.
    return requirement.specifier.contains(version, prereleases=True)
