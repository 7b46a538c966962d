"""The laws, each a function from a ``System`` to a ``Cell``, in the groups and the order of the tables."""

from __future__ import annotations

from benchmarks.conformance.loaders.laws import cost, faults, order, resume
from benchmarks.conformance.loaders.laws.law import Law

GROUPS: dict[str, dict[str, Law]] = {
    "Order": order.LAWS,
    "Resume": resume.LAWS,
    "Faults": faults.LAWS,
    "Cost": cost.LAWS,
}
LAWS: dict[str, Law] = {name: law for laws in GROUPS.values() for name, law in laws.items()}
