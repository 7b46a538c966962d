from __future__ import annotations

import json

import pytest

from pretrain.data.card import Card, encode_classes, load_classes
from pretrain.data.sources import open_sources
from pretrain.errors import DataError
from tests.unit.data.sets import experiment, write_set


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set", [5, 4])


def test_the_card_says_what_was_packed(folder):
    card = Card.load(folder)
    assert (card.num_samples, card.num_classes, card.labels, card.num_shards) == (9, 7, "single", 2)
    assert card.num_bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    readable = (folder / "card.md").read_text()
    for word in ("# coded, train", "made in a test", "num_samples | 9 |", "licence"):
        assert word in readable


def test_facts_are_words_and_say_long_lists_in_short(folder):
    known = {"short_sides": {"8": 1500}, "class_counts": [3, 2, 1200], "dropped": {"too small": 4}}
    facts = dict(Card.load(folder).model_copy(update=known).facts())
    assert facts["short_sides"] == "8 – 15 px: 1,500" and facts["dropped"] == "too small: 4"
    assert facts["class_counts"] == "3 classes of 2 to 1,200 images"
    assert "target_mean" not in facts and "quarantined" not in facts, "nothing is known of them"


def test_classes_have_index_id_and_name(tmp_path):
    (tmp_path / "classes.csv").write_bytes(encode_classes([("n01", 'a "quoted", name'), ("n02", "ü")]))
    assert (tmp_path / "classes.csv").read_text().splitlines()[0] == "index,id,name"
    assert load_classes(tmp_path) == [("n01", 'a "quoted", name'), ("n02", "ü")]


def _edit(folder, **values):
    path = folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), "card.json: No such file.*not completely packed"),
        (lambda folder: _edit(folder, version=2), "not a card of version 1: version"),
        (lambda folder: _edit(folder, surprise=1), "surprise"),
        (lambda folder: (folder / "classes.csv").write_text("index,id,name\n"), "classes.csv was changed"),
    ],
)
def test_a_card_that_cannot_be_trusted_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        Card.load(folder)


@pytest.mark.parametrize(("key", "value"), [("num_samples", 10), ("num_classes", 8)])
def test_a_config_for_another_set_is_refused(folder, key, value):
    config = experiment(folder, 9, **{f"data__{key}": value})
    message = rf"the card says {key} \d, the config says data.{key} {value}\. Set data.{key}"
    with pytest.raises(DataError, match=message):
        open_sources(config)
