"""The JSON schema of the config, generated from the models, so that editors complete and check the YAML.

    python -m pretrain.config.json_schema > configs/schema/experiment.schema.json
    python -m pretrain.config.json_schema cluster > configs/schema/cluster.schema.json
    python -m pretrain.config.json_schema devices > configs/schema/devices.schema.json
    python -m pretrain.config.json_schema chain > configs/schema/chain.schema.json
    python -m pretrain.config.json_schema submission > configs/schema/submission.schema.json

Differs: from the models in three ways, in files that people write. No key is required, since a file may inherit it
through ``extends``; ``extends`` is a key; numbers may also be text, as some YAML parsers read ``10_000`` or (YAML 1.1)
``1e-4``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from pretrain.config.devices import DeviceTable
from pretrain.config.duration import Duration, Interval
from pretrain.config.schema.cluster import Cluster
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.jobs import ChainConfig
from pretrain.config.schema.submission import Submission

EXTENDS = {
    "description": "A file or a list of files that these settings are merged over, relative to this file.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
}
MODELS = {
    "experiment": Experiment,
    "cluster": Cluster,
    "chain": ChainConfig,
    "devices": DeviceTable,
    "submission": Submission,
}
WRITTEN = ("submission",)  # by a program: complete, without ``extends``, and numbers are numbers
_NUMBER_TEXT = {
    "integer": r"^[+-]?[0-9][0-9_]*(\.0*)?([eE]\+?[0-9]+)?$",
    "number": r"^[+-]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$",
}


def schema_text(name: str = "experiment") -> str:
    """The schema as JSON text.

    Args:
        name: a key of ``MODELS``; ``cluster`` is for the files that ``--cluster`` reads.
    """
    exact = TypeAdapter(MODELS[name]).json_schema(by_alias=True)
    schema = exact if name in WRITTEN else _relax(exact)
    members = [schema["$defs"][member["$ref"].rpartition("/")[2]] for member in schema.get("anyOf", ())]
    for top in () if name in WRITTEN else members or [schema]:
        top["properties"] = {"extends": EXTENDS, **top["properties"]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _relax(node: Any) -> Any:
    """The schema of a possibly partial file: numbers may be text, and a section may be null (its defaults)."""
    if isinstance(node, list):
        return [_relax(item) for item in node]
    if not isinstance(node, dict):
        return node
    relaxed = {key: _relax(value) for key, value in node.items() if not (key == "required" and isinstance(value, list))}
    default = node.get("default")
    if isinstance(default, dict) and default.keys() == {"value", "unit"}:
        relaxed["default"] = str(Duration(**default))
    elif isinstance(default, dict) and default.keys() == {"training", "seconds"}:
        relaxed["default"] = str(Interval(Duration(**default["training"]), default["seconds"]))
    if relaxed.get("type") in _NUMBER_TEXT:
        relaxed["pattern"] = _NUMBER_TEXT[relaxed["type"]]
        relaxed["type"] = [relaxed["type"], "string"]
    if relaxed.get("type") == "object":
        relaxed["type"] = ["object", "null"]
    return relaxed


def main(arguments: list[str]) -> int:
    """Prints the schema named by the first argument."""
    name = arguments[0] if arguments else "experiment"
    if name not in MODELS or len(arguments) > 1:
        print(f"usage: python -m pretrain.config.json_schema [{' | '.join(MODELS)}]", file=sys.stderr)
        return 2
    sys.stdout.write(schema_text(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
