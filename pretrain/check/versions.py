"""Installed packages against the ranges that the project was tested with, which its own package states.

The ranges are those of pyproject.toml, read from the installed package, so that they are written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement

from pretrain.errors import SetupError

PROJECT = "vit-pretrain"
# What versions outside the range were found to do, where it is worse than an error.
KNOWN_FAULTS = {
    "deepspeed": "0.17.6 to 0.18.2 accumulate wrongly at ZeRO-2 (norms off by 34 to 57 %), 0.17.5 reports and "
    "clips a norm 67,000 times too large with autocast at ZeRO-1, 0.16.9 and 0.17.1 ignore autocast",
}


class Package(NamedTuple):
    """A dependency: its name, the installed version, and the range that is allowed."""

    name: str
    installed: str
    allowed: str

    @property
    def problem(self) -> str:
        """What is wrong with the installed version."""
        fault = KNOWN_FAULTS.get(self.name)
        return f"{self.name} {self.installed} is installed, {self.allowed} is needed" + (f" ({fault})" if fault else "")

    @property
    def remedy(self) -> str:
        """The command that installs another."""
        return f"pip install '{self.name}{self.allowed}'"


def outside_range() -> list[Package]:
    """Every installed dependency whose version the project was not tested with.

    Raises:
        SetupError: the project itself is not installed, so that nothing states the ranges.
    """
    return [package for package, requirement in _installed() if not _allows(requirement, package.installed)]


def check_library(backend: str) -> None:
    """Checks the library that a backend is named after; versions without known faults are doctor's to report.

    Raises:
        SetupError: it is missing, or of a version that may train wrongly without an error.
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
        except metadata.PackageNotFoundError:  # of an extra; what is needed and missing fails at its import
            continue
        yield Package(requirement.name, version, str(requirement.specifier)), requirement


def _allows(requirement: Requirement, version: str) -> bool:
    # Builds of vendors are pre-releases: 2.9.0a0+gitabc.
    return requirement.specifier.contains(version, prereleases=True)
