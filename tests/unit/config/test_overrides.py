"""A value on the command line is what was typed: nothing of it is taken for a comment, a tag or a mapping."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.sweep.trials import as_overrides
from pretrain.config.loader import load_experiment
from pretrain.config.tree import override
from pretrain.errors import ConfigError
from tests.integration.small_run import PRETRAIN


def shards_of(word: str) -> str | None:
    return load_experiment(PRETRAIN, overrides=[word]).experiment.data.shards


@pytest.mark.parametrize(
    "text",
    [
        "/d/my set #2",
        "/d/#2",
        "#2",
        "file:///d/set#1",
        "a: b",
        "- a",
        "& b",
        "*alias",
        "!tag x",
        "| x",
        "> x",
        "%x",
        "@x",
        "`x`",
        "? x",
        "a 'b' \"c\"",
        "a\\b",
        "pipe:aws s3 cp s3://b/{name} - # quietly",
        "/d/고양이",
        "/d/caf\udce9",
        "a=b",
        "a, b",
        "a]",
    ],
)
def test_text_is_the_value(text: str) -> None:
    assert shards_of(f"data.shards={text}") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'/d/my set #2'", "/d/my set #2"),
        ('"/d/my set #2"', "/d/my set #2"),
        ('"a\\tb"', "a\tb"),
        ("  /d/x  ", "/d/x"),
        ("'12'", "12"),
        ("''", ""),
        ("'null'", "null"),
    ],
)
def test_quotes_are_those_of_yaml(text: str, value: str) -> None:
    assert shards_of(f"data.shards={text}") == value


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("data.shards='/d/my set' #2", "text after the value"),
        ("data.shards='/d/my set' 2", "not valid YAML"),
        ('data.shards="a" "b"', "not valid YAML"),
        ("data.shards=[a, b] c", "not valid YAML"),
        ("model.img_size=[8, 8] # two", "text after the value, or a comment in it"),
        ("model.img_size=[8, #9\n8]", "text after the value, or a comment in it"),
        ("evaluation.sets={a: {shards: /d/my set #2, num_samples: 3}}", "not valid YAML"),
    ],
)
def test_what_would_be_passed_over_is_refused(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_experiment(PRETRAIN, overrides=[word])
    assert "command line" in str(caught.value) and word.partition("=")[0] in str(caught.value)


TEXT = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f"), min_size=1, max_size=30)


@given(TEXT)
@example("null")
@example("~")
@example(" x ")
@example("[x]")
@example("'tis")
@example("😀 [")
@example('{"a": "\\ud83d"}')
@example("[caf\udce9")
@example("[\x85")
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_value_that_a_stage_writes_is_read_back(text: str) -> None:
    assert shards_of(override("data.shards", text)) == text


@given(TEXT)
@example("/d/caf\udce9 #2")
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_resolved_config_gives_the_text_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(load_experiment(PRETRAIN, overrides=[override("data.shards", text)]).to_yaml(), encoding="utf-8")
    assert load_experiment(path).experiment.data.shards == text


def test_values_of_a_sweep_are_words_of_one_command() -> None:
    """A grid's values, as YAML gives them, come out of a shell and the loader as they went in."""
    words = as_overrides("data.shards", "/d/my set #2") + as_overrides("optim.lr", 3e-4) + as_overrides("seed", 7)
    experiment = load_experiment(PRETRAIN, overrides=shlex.split(shlex.join(words))).experiment
    assert (experiment.data.shards, experiment.optim.lr, experiment.seed) == ("/d/my set #2", 3e-4, 7)
    sets = {"x": {"shards": "/d/val #1", "num_samples": 3}}
    found = load_experiment(PRETRAIN, overrides=as_overrides("evaluation.sets", sets)).experiment.evaluation.sets
    assert {name: chosen.shards for name, chosen in found.items()} == {"x": "/d/val #1"}
