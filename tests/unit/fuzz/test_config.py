"""No config and no override makes the program crash or compute without end: each is loaded, or refused by name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.config.typed import known_keys
from pretrain.errors import ConfigError
from tests.integration.small_run import PRETRAIN
from tests.unit.fuzz.bounded import damaged, outcome

KEYS = sorted(set(known_keys(Experiment)))
VALUES = (
    *(
        "1e308 epochs",
        "1e308 steps",
        "1e400 samples",
        "99999999999999999999 steps",
        "0 steps",
        "1e-300 samples",
        "50 %",
    ),
    *("0 %", "101 %", "1e400 %", "9223372036854775808", "-9223372036854775809", "1e400", "1" * 5000, "1e308", "-1e308"),
    *("1e-320", "nan", "inf", "0", "-1", "1", "2", "3", "7", "4096", "1e6", "1e12", "2147483648", "true", "null", "''"),
    *("x", "[]", "[1]", "[1, 2]", "[0.9, 0.999]", "[x, y, z]", "{}", "{a: 1}", "{a: {b: {c: 1}}}", "[null]", "[{}]"),
    *(
        "[" * 200 + "]" * 200,
        "{a: " * 200 + "1" + "}" * 200,
        "[" * 20_000,
        "\x00",
        "\x1b[31m",
        "\ud800",
        "é",
        "/" * 5000,
    ),
    *("a" * 300, "../..", "/dev/null", "*", "vit", "B/16", "50 %", "3 samples", "-", "$(x)", "{'': 1}", "rand-m9"),
    *("cosine", "rsqrt", "sgd", "adafactor", "fp32", "bf16", "sigmoid", "regression", "segmentation", "masked_patches"),
    *("http://h/x", "http://[x", "s3://b", "pipe:cat {name}", "pipe:x", "full", "every_3", "every_9999999999999999999"),
)


def tried(overrides: list[str], world: int | None = None) -> str:
    def action() -> None:
        resolved = load_experiment(PRETRAIN, overrides=overrides)
        resolved.to_yaml()
        check(resolved, world=world)

    return outcome(action, overrides)


def test_overrides_of_any_key() -> None:
    rng = random.Random(20)
    seen = set()
    for _ in range(350):
        overrides = [f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice([1, 1, 2, 3]))]
        seen.add(tried(overrides, rng.choice([None, 1, 2, 8])))
    assert {"ok", "ConfigError"} <= seen, "some are right and some are wrong"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_each_value_of_each_key(part: int) -> None:
    for key in KEYS[part::8]:
        for value in VALUES:
            tried([f"{key}={value}"])


def test_files_with_damaged_bytes(tmp_path: Path) -> None:
    rng = random.Random(21)
    path, text = tmp_path / "x.yaml", Path(PRETRAIN).read_bytes()
    seen = set()
    for _ in range(150):
        path.write_bytes(content := damaged(text, rng))
        seen.add(outcome(lambda: load_experiment(path).to_yaml(), content))
    assert {"ok", "ConfigError"} <= seen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested more than"),
        ("a: " + "{a: " * 100 + "1" + "}" * 100, "nested more than"),
        ("a: &a [1]\nb: [*a, *a]\n", "aliases"),
        ("a: " + "x" * (5 << 20), "more than 4,194,304 bytes"),
        ("duration: 1e308 epochs", "duration: 1e+308 epochs is longer than 1e+18 samples"),
        ("duration: 1e400 epochs", "the number is too large"),
        ("data: {subset: 1e400 samples}", "must be a whole number"),
        ("global_batch_size: 9223372036854775808", "is not a whole number > 0 and ≤ 16777216"),
        ("seed: 9223372036854775808", "is not a whole number"),
        ("seed: " + "1" * 5000, "is not a whole number"),
        ('name: "a\\0b"', "a character that no text may have"),
    ],
)
def test_what_no_config_has(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(f"extends: {Path(PRETRAIN).resolve()}\n{text}\n" if text[0] != "[" else text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "x.yaml")
    assert words in str(caught.value) and len(str(caught.value)) < 2000


def test_a_file_without_end() -> None:
    with pytest.raises(ConfigError, match="more than 4,194,304 bytes"):
        load_experiment("/dev/zero")
