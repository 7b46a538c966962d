"""The generated JSON schemas and the page of keys are current, and say the same of every config as the loader does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pretrain.config import json_schema, keys
from pretrain.config.changes import flatten
from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.config.typed import known_keys

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "configs" / "schema"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    import json

    return jsonschema.Draft202012Validator(json.loads(json_schema.schema_text(name)))


@pytest.mark.parametrize("name", json_schema.MODELS)
def test_the_schema_file_is_current(name: str) -> None:
    command = f"python -m pretrain.config.json_schema {name} > configs/schema/{name}.schema.json"
    assert (SCHEMAS / f"{name}.schema.json").read_text() == json_schema.schema_text(name), f"run: {command}"


@pytest.mark.parametrize("name", json_schema.MODELS)
def test_the_schema_is_a_schema(name: str) -> None:
    checker = validator(name)
    checker.check_schema(checker.schema)


@pytest.mark.parametrize("file", FILES)
def test_every_config_names_its_schema_and_fits_it(file: str) -> None:
    kinds = {"configs/cluster": "cluster", "configs/chains": "chain", "configs": "devices"}
    name = kinds.get(file.rpartition("/")[0], "experiment")
    text = (ROOT / file).read_text()
    folder = os.path.relpath("configs/schema", os.path.dirname(file))
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={folder}/{name}.schema.json"
    validator(name).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "settings",
    [
        {"optm": {"lr": 1}},
        {"optim": {"lr": "fast"}},
        {"optim": {"lr": -1}},
        {"model": {"pool": "max"}},
        {"model": {"name": "timm/resnet18", "depth": 3}},
        {"model": {"name": "vit", "kwargs": {"depth": 3}}},
        {"duration": 7},
        {"data": {"lanes": "many"}},
        {"extends": []},
        {"objective": {"name": "softmax", "reduction": "mean"}},
        {"objective": {"reduction": "mean", "teacher": "runs/x"}},
        {"objective": {"name": "sigmoid", "class_weights": "balanced"}},
        {"objective": {"name": "hinge"}},
        {"data": {"train_transform": {"crop": "simple", "ratio": [0.5, 2]}}},
        {"data": {"train_transform": {"crop": "inception", "short_side": 256}}},
        {"optim": {"name": "sgd", "betas": [0.9, 0.99]}},
        {"cluster": {"backend": "accelerate", "zero_stage": 2}},
        {"evaluation": {"sets": {"x": {"kind": "knn", "shots": [1]}}}},
        {"cluster": {"backend": "accelerate", "deepspeed": {"x": 1}}},
        {"optim": {"schedule": {"name": "constant", "end_lr": 0}}},
        {"optim": {"schedule": {"end_lr": 0, "timescale": "3 steps"}}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(settings: dict[str, Any]) -> None:
    assert not validator("experiment").is_valid(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": {"lr": "1e-4"}},
        {"global_batch_size": "4_096"},
        {"data": {"num_samples": 303e6, "lanes": "auto"}},
        {"model": {"depth": None, "img_size": [8, 16]}},
        {"model": {"name": "timm/resnet18", "kwargs": {"layers": [1]}, "drop_path": 0.1}},
        {"model": {"name": "timm/resnet18", "variant": ""}},
        {"evaluation": None},
        {"extends": ["a.yaml", "b.yaml"]},
        {"objective": {"name": "sigmoid", "reduction": "mean", "label_smoothing": 0}},
        {"objective": {"reduction": "mean"}},  # the name may be in the file that this one extends
        {"objective": None},
        {"evaluation": {"sets": {"x": {"kind": "knn", "k": 5}, "y": {"kind": "logistic", "l2": 1}}}},
        {"cluster": {"backend": "deepspeed", "zero_stage": 2}},
        {"cluster": {"backend": "accelerate", "zero_stage": 0, "deepspeed": {}}},
        {"data": {"train_transform": {"crop": "resmall", "short_side": 256, "hflip": 0}}},
        {"data": {"train_transform": {"min_area": 0.2, "ratio": [0.5, 2], "short_side": None}}},
        {"optim": {"name": "sgd", "lr": 1, "momentum": 0.5, "schedule": {"name": "rsqrt", "shift": "3 steps"}}},
        {"optim": {"betas": [0.9, 0.99], "schedule": {"end_lr": "1e-6", "warmup": "3 steps"}}},
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(settings: dict[str, Any]) -> None:
    validator("experiment").validate(settings)


def test_a_cluster_file_has_the_keys_of_its_backend() -> None:
    checker = validator("cluster")
    checker.validate({"extends": "x.yaml", "backend": "deepspeed", "zero_stage": 3})
    checker.validate({"extends": "x.yaml", "zero_stage": 3})
    assert not checker.is_valid({"backend": "accelerate", "zero_stage": 3})


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["cluster"], 0), (["model"], 2), (["cluster", "x"], 2)])
def test_the_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert json_schema.main(arguments) == code
    printed = capsys.readouterr()
    assert (printed.out == json_schema.schema_text(*arguments)) if code == 0 else printed.err.startswith("usage")


def test_the_page_of_keys_is_current() -> None:
    command = "python -m pretrain.config.keys > docs/config.md"
    assert (ROOT / "docs" / "config.md").read_text() == keys.page(), f"run: {command}"


def test_the_page_has_every_key_with_its_meaning_and_default() -> None:
    listed = {key.name: key for section in keys.sections_of(Experiment) for key in section.keys}
    sections = {section.name for section in keys.sections_of(Experiment)}
    assert [key for key in known_keys(Experiment) if key not in listed and key not in sections] == []
    for _, _, model in keys.FILES:
        for section in keys.sections_of(model):
            assert section.about, section.name
            assert [key.name for key in section.keys if not key.meaning] == [], "give the field a description"
    resolved = load_experiment(ROOT / "configs/pretrain/demo_digits.yaml")
    defaults: dict[str, set[str]] = {}  # kinds of a section may have different ones
    for key in (key for section in keys.sections_of(Experiment) for key in section.keys):
        defaults.setdefault(key.name, set()).add(key.default.strip("`"))
    for name, value in flatten(resolved.to_dict()):  # the value of a key that nobody wrote
        if resolved.provenance[name] == "default" and name in defaults:
            whole = isinstance(value, float) and value.is_integer()
            assert defaults[name] & {keys.written(value), keys.written(int(value)) if whole else ""}, name
