"""The config loader: types by field, extends, cluster files, overrides, provenance, and every error with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.duration import Duration
from pretrain.config.loader import Resolved, load_experiment
from pretrain.config.schema.optim.elementwise import AdamWConfig
from pretrain.errors import ConfigError

MINIMAL = """\
name: small
duration: 7 epochs
global_batch_size: 64
model: {variant: B/16}
data:
  shards: data/x/train
  num_samples: 1000
  num_classes: 10
optim:
  lr: 1e-4
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into the working folder of the test and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "x.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return name

    return write


def value_at(resolved: Resolved, key: str) -> Any:
    value: Any = resolved.experiment
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part.replace("from", "from_"))
    return value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-4", 1e-4),  # YAML 1.1 reads text
        ("optim.lr", "3", 3.0),
        ("optim.lr", ".5", 0.5),
        ("optim.lr", "1_0.5", 10.5),
        ("global_batch_size", "4_096", 4096),
        ("data.num_samples", "303e6", 303_000_000),
        ("seed", "010", 10),  # YAML 1.1 reads 8
        ("model.head_bias", "-10", -10.0),
        ("model.class_token", "on", True),
        ("telemetry.tensorboard", "off", False),
        ("telemetry.tensorboard", "False", False),
        ("name", "off", "off"),
        ("name", "1e-4", "1e-4"),
        ("name", "'12'", "12"),
        ("name", "12", "12"),
        ("data.shards", "'null'", "null"),
        ("cluster.zero_stage", "3", 3),
        ("cluster.micro_batch_size", "auto", "auto"),
        ("cluster.micro_batch_size", "8", 8),
        ("model.img_size", "[32, 64]", (32, 64)),
        ("model.img_size", "96", 96),
        ("model.depth", "null", None),
        ("model.depth", "~", None),
        ("model.depth", "", None),
        ("model.representation_size", "width", "width"),
        ("model.representation_size", "768", 768),
        ("optim.betas", "[0.9, 1e-1]", (0.9, 0.1)),
        ("resume.allow_changes", "[optim.lr, seed]", ("optim.lr", "seed")),
        ("resume.from", "runs/a", "runs/a"),
        ("evaluation.every", "2 epochs", Duration(2, "epochs")),
        ("evaluation.sets", "{val: {shards: a, num_samples: 3}}", None),
        ("cluster.deepspeed", "{a: 1e-4, b: off, c: 'off', d: [3, x, '1'], e: 12:30, f: ~}", None),
    ],
)
@pytest.mark.parametrize("by", ["file", "override"])
def test_a_scalar_is_read_by_the_type_of_its_key(write: Write, by: str, key: str, text: str, value: Any) -> None:
    if by == "override":
        resolved = load_experiment(write(MINIMAL), overrides=[f"{key}={text}"])
    else:
        head, _, leaf = key.rpartition(".")
        line = f"{head}: {{{leaf}: {text}}}" if head else f"{leaf}: {text}"
        write(MINIMAL, "base.yaml")
        resolved = load_experiment(write(f"extends: base.yaml\n{line}\n"))
    if key == "evaluation.sets":
        assert value_at(resolved, key)["val"].num_samples == 3
    elif key == "cluster.deepspeed":
        expected = {"a": 1e-4, "b": False, "c": "off", "d": [3, "x", "1"], "e": "12:30", "f": None}
        assert value_at(resolved, key) == expected
    else:
        assert value_at(resolved, key) == value
        assert type(value_at(resolved, key)) is type(value)


def test_extends_merges_sections_and_replaces_the_rest(write: Write) -> None:
    write(MINIMAL + "  betas: [0.9, 0.95]\nevaluation: {sets: {a: {shards: a, num_samples: 1}}}\n", "base/base.yaml")
    write("optim: {lr: 5, weight_decay: 0.1}\nseed: 1\n", "base/other.yaml")
    path = write(
        "extends: [../base/base.yaml, ../base/other.yaml]\noptim: {betas: [0.8, 0.9]}\n"
        "evaluation: {sets: {b: {shards: b, num_samples: 2}}}\n",
        "runs/x.yaml",
    )
    resolved = load_experiment(path)
    optim = resolved.experiment.optim
    assert isinstance(optim, AdamWConfig)
    assert (optim.lr, optim.weight_decay, optim.betas) == (5.0, 0.1, (0.8, 0.9))
    assert set(resolved.experiment.evaluation.sets) == {"a", "b"}
    assert resolved.provenance["optim.lr"] == "base/other.yaml:1"
    assert resolved.provenance["optim.betas"] == "runs/x.yaml:2"
    assert resolved.provenance["model.variant"] == "base/base.yaml:4"


def test_keys_of_another_name_are_told_where_the_parent_wrote_them(write: Write) -> None:
    """A file that changes the name of what it extends must not keep the old name's keys unnoticed."""
    write(MINIMAL + "objective:\n  reduction: mean\n  name: sigmoid\n", "base.yaml")
    assert load_experiment("base.yaml").experiment.objective.name == "sigmoid"
    with pytest.raises(
        ConfigError, match=r"^base\.yaml:12: objective: reduction belongs to name: sigmoid; with softmax"
    ):
        load_experiment(write("extends: base.yaml\nobjective: {name: softmax}\n"))
    with pytest.raises(ConfigError, match=r"^base\.yaml:12: objective: reduction belongs to name: sigmoid"):
        load_experiment("base.yaml", overrides=["objective.name=regression"])


def test_the_cluster_file_and_then_the_command_line_win(write: Write) -> None:
    path = write(MINIMAL + "cluster: {num_workers: 1, zero_stage: 2}\n")
    cluster = write("num_workers: 7\nnum_devices: 4\n", "c.yaml")
    resolved = load_experiment(path, cluster=cluster, overrides=["cluster.num_devices=8", "cluster.num_devices=16"])
    assert resolved.experiment.cluster.num_workers == 7
    assert resolved.experiment.cluster.stage == 2
    assert resolved.experiment.cluster.num_devices == 16
    assert resolved.provenance["cluster.num_workers"] == "c.yaml:1"
    assert resolved.provenance["cluster.num_devices"] == "command line"
    assert resolved.provenance["cluster.prefetch_factor"] == "default"


def test_null_takes_a_section_or_an_entry_back(write: Write) -> None:
    write(MINIMAL + "evaluation: {every: 1 epoch, sets: {a: {shards: a, num_samples: 1}}}\n", "base.yaml")
    path = write("extends: base.yaml\n")
    assert load_experiment(path, overrides=["evaluation.sets.a=null"]).experiment.evaluation.sets == {}
    assert load_experiment(path, overrides=["evaluation=null"]).experiment.evaluation.every is None


@pytest.mark.parametrize("by", ["file", "override"])
def test_an_empty_section_empties_what_is_below_it(write: Write, by: str) -> None:
    sets = "evaluation: {micro_batch_size: 3, sets: {a: {shards: a, num_samples: 1}}}\n"
    write(MINIMAL + sets + "cluster: {num_workers: 3, deepspeed: {a: 1}}\n", "base.yaml")
    emptied = "evaluation: {sets: {}}\ncluster: {deepspeed: {}}\n" if by == "file" else ""
    overrides = ["evaluation.sets={}", "cluster.deepspeed={}"] if by == "override" else []
    resolved = load_experiment(write(f"extends: base.yaml\n{emptied}"), overrides=overrides)
    assert resolved.experiment.evaluation.sets == {} and resolved.experiment.cluster.passed_on == {}
    assert resolved.experiment.evaluation.micro_batch_size == 3, "its neighbours stay"
    assert resolved.experiment.cluster.num_workers == 3
    more = load_experiment("x.yaml", overrides=[*overrides, "evaluation.sets={}", "evaluation.sets.b.shards=b",
                           "evaluation.sets.b.num_samples=2"])  # fmt: skip
    assert set(more.experiment.evaluation.sets) == {"b"}


def test_a_file_that_only_extends_changes_nothing(write: Write) -> None:
    write(MINIMAL + "cluster: {num_workers: 3}\n", "base.yaml")
    write("{}\n", "empty.yaml")
    assert load_experiment(write("extends: base.yaml\n")).experiment.optim.lr == 1e-4
    assert load_experiment("x.yaml", cluster="empty.yaml").experiment.cluster.num_workers == 3


def test_where_falls_back_to_the_section_and_the_file(write: Write) -> None:
    resolved = load_experiment(write(MINIMAL), overrides=["seed=3"])
    assert resolved.where("seed") == "command line"
    assert resolved.where("optim.lr") == "x.yaml:10"
    assert resolved.where("optim.betas") == "x.yaml"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        # misspelt, misplaced and duplicate keys
        ("nmae: x\n", [], ["x.yaml:11: nmae: unknown key; did you mean name?"]),
        ("lr: 3\n", [], ["x.yaml:11: lr: unknown key; did you mean optim.lr?"]),
        ("  wieght_decay: 3\n", [], ["x.yaml:11: optim.wieght_decay: unknown key; did you mean optim.weight_decay?"]),
        ("  from_: 3\n", [], ["x.yaml:11: optim.from_: unknown key"]),
        ("zzz: 3\n", [], ["x.yaml:11: zzz: unknown key; allowed: version, name"]),
        ("  lr: 1e-3\n", [], ["x.yaml:11: lr: duplicate key, first written at x.yaml:10; remove one of them"]),
        ("", ["optm.lr=1"], ["command line: optm: unknown key; did you mean optim?"]),
        ("", ["data.lr=1"], ["command line: data.lr: unknown key; did you mean optim.lr?"]),
        # wrong types
        ("", ["optim.lr=fast"], ["command line: optim.lr: 'fast' is not a number > 0"]),
        ("", ["optim.lr=nan"], ["'nan' is not a number > 0"]),
        ("", ["optim.lr=1e999"], ["'1e999' is not a number > 0"]),
        ("", ["optim.lr=-1"], ["'-1' is not a number > 0"]),
        ("", ["optim.lr='1'"], ["'1' is not a number > 0; remove the quotes"]),
        ("", ["optim.lr=[1]"], ["optim.lr: a list is not a number > 0"]),
        ("", ["optim.lr.x=1"], ["optim.lr: a section is not a number > 0"]),
        ("", ["seed=1.5"], ["seed: '1.5' is not a whole number ≥ 0"]),
        ("", ["telemetry.tensorboard=maybe"], ["'maybe' is not true or false"]),
        ("", ["name=a/b"], ["name: 'a/b' is not text that matches"]),
        ("", ["name=null"], ["name: 'null' is not text"]),
        ("", ["duration=7"], ["duration: '7' is not a duration: write a number and its unit"]),
        ("", ["optim.schedule.name=step"], ["'step' is not cosine, linear, polynomial, rsqrt or constant"]),
        ("", ["cluster.zero_stage=4"], ["cluster.zero_stage: '4' is not 0, 1, 2 or 3"]),
        ("", ["data.lanes=many"], ["data.lanes: 'many' is not a whole number > 0 or auto"]),
        ("", ["model.img_size=[1, x]"], ["model.img_size: 'x' is not a whole number > 0 or a list of 2"]),
        ("", ["model.img_size=[1]"], ["model.img_size: a list is not a whole number > 0 or a list of 2, each"]),
        ("", ["model.representation_size=deep"], ["'deep' is not a whole number > 0 or width or null"]),
        ("", ["optim.betas=[0.9]"], ["optim.betas: a list is not a list of 2, each a number ≥ 0 and < 1"]),
        ("", ["optim.betas=0.9"], ["optim.betas: '0.9' is not a list of 2"]),
        ("", ["cluster=3"], ["command line: cluster: expected a section with the keys backend"]),
        ("", ["evaluation.sets=3"], ["evaluation.sets: '3' is not a section"]),
        (
            "",
            ["evaluation.sets.a=3"],
            ["evaluation.sets.a: expected a section with the keys kind, shards, num_samples"],
        ),
        ("", ["evaluation.sets.a.shards=x"], ["evaluation.sets.a.num_samples is missing: Expected number"]),
        ("", ["version=2"], ["version: '2' is not 1"]),
        # missing
        ("---\n", [], ["x.yaml:11: not valid YAML: but found another document"]),
        ("", ["model=null"], ["command line: model is missing"]),
        ("extends: []\n", [], ["extends: expected a file or a list of files"]),
        # impossible combinations
        ("", ["model.class_token=false"], ["command line: model: pool: token needs class_token: true"]),
        (
            "objective: {name: softmax, reduction: mean}\n",
            [],
            ["x.yaml:11: objective: reduction belongs to name: sigmoid"],
        ),
        (
            "objective: {reduction: mean, name: distillation, teacher: t}\n",
            [],
            ["x.yaml:11: objective: reduction belongs to name: sigmoid; with distillation it would be ignored"],
        ),
        ("objective: {name: hinge}\n", [], ["x.yaml:11: objective.name: 'hinge' is not softmax, sigmoid, dist"]),
        ("objective: {name: [softmax]}\n", [], ["x.yaml:11: objective.name: a list is not softmax, sigmoid, dist"]),
        ("", ["objective.name=null"], ["command line: objective.name: 'null' is not softmax, sigmoid, dist"]),
        (
            "objective: {name: sigmoid, zzz: 1}\n",
            [],
            ["x.yaml:11: objective.zzz: unknown key"],
        ),
        ("objective: {reductoin: mean}\n", [], ["objective.reductoin: unknown key; did you mean objective.reduction?"]),
        ("", ["objective.name=regression", "objective.regression=x"], ["command line: objective.regression: 'x' is"]),
        (
            "",
            ["objective=3"],
            ["objective: expected a section with the keys name, label_smoothing, class_weights, pos_weight, "],
        ),
        (
            "",
            ["optim.name=sgd", "optim.eps=1"],
            ["optim: eps belongs to name: adamw, lamb, muon, shampoo, soap or schedule_free; with sgd"],
        ),
        (
            "",
            ["optim.name=lamb", "optim.momentum=0.8"],
            ["optim: momentum belongs to name: sgd, adafactor, muon or shampoo; with lamb it"],
        ),
        (
            "",
            ["optim.overrides=[{pattern: head, frozen: true, freeze: true}]"],
            ["optim.overrides.frozen: unknown key; did you mean optim.overrides.freeze?"],
        ),
        (
            "",
            ["optim.overrides=[{pattern: head, lr_scale: -1}]"],
            ["optim.overrides.lr_scale: '-1' is not a number > 0"],
        ),
        ("", ["optim.overrides=[{freeze: true}]"], ["optim.overrides.pattern is missing"]),
        ("", ["optim.name=lamb", "cluster.fused_optimizer=true"], ["cluster.fused_optimizer: true needs optim.name"]),
        ("", ["cluster.deepspeed.bf16.enabled=true"], ["cluster: deepspeed.bf16 is set by the engine (use precision)"]),
        (
            "",
            ["cluster.backend=fsdp"],
            ["command line: cluster.backend: 'fsdp' is not auto, deepspeed, accelerate or fsdp2"],
        ),
        (
            "",
            ["cluster.backend=accelerate", "cluster.zero_stage=2"],
            ["command line: cluster: zero_stage belongs to backend: auto or deepspeed; with accelerate it would be"],
        ),
        (
            "",
            ["cluster.backend=accelerate", "cluster.deepspeed.x=2"],
            ["command line: cluster: deepspeed belongs to backend: auto or deepspeed; with accelerate it would be"],
        ),
        (
            "",
            ["cluster.backend=accelerate", "cluster.num_worker=2"],
            ["unknown key; did you mean cluster.num_workers?"],
        ),
        # no override at all
        ("", ["optim.lr"], ["command line: 'optim.lr' is not an override; write key.sub=value"]),
        ("", ["=3"], ["'=3' is not an override"]),
        ("", ["optim..lr=3"], ["'optim..lr=3' is not an override"]),
        ("", ["optim.betas=[1"], ["command line: not valid YAML", "'optim.betas=[1'"]),
        # YAML that is not understood
        ("a: [1\n", [], ["x.yaml:12: not valid YAML"]),
        ("seed: &a 3\ntelemetry: {log_every: *a}\n", [], ["x.yaml:11: aliases (*name) are not supported"]),
        ("seed: !!python/name:os.system ''\n", [], ["x.yaml:11: the tag tag:yaml.org,2002:python/name:os.system"]),
        ("<<: {seed: 3}\n", [], ["x.yaml:11: a key must be a word"]),
        ("? [1, 2]\n: 3\n", [], ["x.yaml:11: a key must be a word"]),
        ("extends: nowhere.yaml\n", [], ["nowhere.yaml: cannot read the config (extended by x.yaml)"]),
        ("extends: x.yaml\n", [], ["extends goes round in a circle: x.yaml → x.yaml"]),
        ("extends: {a: b}\n", [], ["x.yaml:11: extends: expected a file or a list of files"]),
    ],
)
def test_an_error_names_place_key_and_remedy(
    write: Write, text: str, overrides: list[str], expected: list[str]
) -> None:
    path = write(MINIMAL + text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides=overrides)
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value), "one problem is one line"


def test_all_problems_are_told_at_once(write: Write) -> None:
    path = write(MINIMAL + "  lrr: 1\nnmae: x\nseed: x\nmodel: {pool: max}\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    lines = str(caught.value).split("\n")
    assert lines[0] == "5 problems:"
    for part in ("x.yaml:14: model: duplicate", "x.yaml:11: optim.lrr", "x.yaml:12: nmae", "x.yaml:13: seed: 'x'"):
        assert sum(part in line for line in lines) == 1
    assert sum("x.yaml:14: model.pool: 'max' is not token" in line for line in lines) == 1


@pytest.mark.parametrize("content", ["", "- a\n", "just text", "# only a comment\n"])
def test_a_file_without_keys_is_refused(write: Write, content: str) -> None:
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_experiment(write(content))


def test_bytes_that_are_no_text_are_refused(write: Write) -> None:
    Path(write("")).write_bytes(b"name: \xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"x\.yaml: not valid YAML"):
        load_experiment("x.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config: No such file"):
        load_experiment(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optim.name=sgd"],
        ["objective.name=sigmoid", "objective.reduction=mean"],
        ["cluster.backend=accelerate"],
        ["cluster.num_workers=0"],
        ["data.train_transform.crop=resize", "data.eval_transform.resize=squash"],
        ["optim.schedule.name=constant"],
        ["cluster.deepspeed={a: 1e-4, b: 'off', c: '1e-4', d: [null, 'null', '', ~], e: {f: on}}"],
        ["resume.from='null'", "output_dir='12'", "init.from='~'"],
        ["duration=0.3 epochs", "evaluation.sets={v: {shards: 'a: b', num_samples: 3}}"],
        ["optim.lr=3.0000000000000004e-5", "optim.eps=1e-12", "model.drop_path=0.1"],
    ],
)
def test_the_resolved_yaml_loads_back_to_an_equal_experiment(write: Write, overrides: list[str]) -> None:
    first = load_experiment(write(MINIMAL), overrides=overrides)
    second = load_experiment(write(first.to_yaml(), "resolved.yaml"))
    assert second.experiment == first.experiment
    assert second.to_yaml() == first.to_yaml()
    assert second.digest == first.digest


def test_a_key_of_another_backend_may_say_what_holds_anyway(write: Write) -> None:
    """As in the resolved configs of earlier versions: DDP is stage 0, and nothing is passed to DeepSpeed."""
    chosen = load_experiment(write(MINIMAL), overrides=["cluster.backend=accelerate"])
    old = load_experiment(write(MINIMAL + "cluster: {backend: accelerate, zero_stage: 0, deepspeed: {}}\n"))
    assert old.experiment == chosen.experiment
    assert "zero_stage" not in old.to_dict()["cluster"] and "deepspeed" not in old.to_dict()["cluster"]


def test_the_resolved_yaml_is_complete(write: Write) -> None:
    resolved = load_experiment(write(MINIMAL))
    settings = resolved.to_dict()
    assert settings["optim"]["betas"] == [0.9, 0.999] and settings["guard"] == {
        "max_consecutive_skips": 20,
        "max_rollbacks": 2,
    }
    assert "momentum" not in settings["optim"], "an AdamW run has no momentum to speak of"
    assert set(resolved.provenance) >= {"optim.betas", "guard.max_consecutive_skips", "cluster.zero_stage"}


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=0, max_size=12))
def test_any_text_survives_the_resolved_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    (folder / "x.yaml").write_text(MINIMAL)
    first = load_experiment(folder / "x.yaml")
    changed = first.experiment.model_copy(
        update={
            "output_dir": text,
            "cluster": first.experiment.cluster.model_copy(update={"deepspeed": {"key": text, "list": [text]}}),
        }
    )
    (folder / "y.yaml").write_text(Resolved(changed, {}, "").to_yaml())
    assert load_experiment(folder / "y.yaml").experiment == changed
