"""The laws, each a function from a ``System`` to a ``Cell``, in the order of the tables."""

from __future__ import annotations

from benchmarks.conformance.trainers.laws import faults, resume
from benchmarks.conformance.trainers.laws.law import Law

GROUPS: dict[str, dict[str, Law]] = {"Trainers: resume": resume.LAWS, "Trainers: faults": faults.LAWS}
LAWS: dict[str, Law] = {name: law for laws in GROUPS.values() for name, law in laws.items()}
