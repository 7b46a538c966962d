from __future__ import annotations

import json

import numpy as np
import pytest

from pretrain.data.sources import open_sources
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import encode_classes, load_classes
from pretrain.errors import DataError
from tests.unit.data.sets import experiment, vector_of, write_set


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
        (lambda folder: _edit(folder, num_classes=8), "card.json was changed or damaged: one of num_samples"),
        (lambda folder: _edit(folder, facts_digest="0" * 32), "card.json was changed or damaged"),
        (lambda folder: _edit(folder, class_counts=[9, 0, 0, 0, 0, 0, 0]), "card.json was changed or damaged"),
        (lambda folder: (folder / "card.json").write_text("[" * 100_000), "not a card of version 1"),
        (lambda folder: (folder / "card.json").write_bytes(b"\xff\xfe"), "not a card of version 1"),
        (lambda folder: _edit(folder, num_samples=1e400), "not a card of version 1"),
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
    message = rf"the card has {key} \d, but the config has data.{key} {value}\. Set data.{key}"
    with pytest.raises(DataError, match=message):
        open_sources(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_samples": 10}, "num_samples is 10, index.json has 9"),
        ({"num_shards": 3}, "num_shards is 3, index.json has 2"),
        ({"num_bytes": 7}, "num_bytes is 7, index.json has"),
        ({"max_labels": 2}, "max_labels is 2, index.json has 1"),
        ({"num_classes": 10**30}, "num_classes is 1,000,"),
        ({"labels": "mask"}, "labels is mask, index.json has the target labels"),
        ({"class_counts": [1, 2]}, "class_counts are not 7 numbers"),
        ({"class_counts": [-1, 2, 2, 2, 2, 2, 2]}, "class_counts are not 7 numbers"),
        ({"index_digest": "0"}, "come from two packs"),
    ],
)
def test_a_card_of_an_earlier_version_must_fit_the_table(folder, values, message):
    _edit(folder, facts_digest="", **values)
    with pytest.raises(DataError, match=message):
        open_sources(experiment(folder, 9))


@pytest.mark.parametrize("facts_digest", [True, False])
@pytest.mark.parametrize("name", ["target_mean", "target_std"])
@pytest.mark.parametrize("change", [lambda found: found * (1 + 1e-4), lambda found: -1.0, lambda found: float("nan")])
def test_the_units_of_a_regression_are_those_of_its_vectors(tmp_path, facts_digest, name, change):
    """With the digest in the card; and without, as earlier versions wrote it, by the vectors themselves."""
    folder = write_set(tmp_path / "set", [5, 0, 4], target="vector")
    card = json.loads((folder / "card.json").read_text())
    own = {} if facts_digest else {"facts_digest": ""}
    _edit(folder, **own)
    config = experiment(folder, 9, objective__name="regression")
    opened = open_sources(config)[0].packed.card
    vectors = np.array([vector_of(number) for number in range(9)])
    assert np.allclose(opened.target_mean, vectors.mean(axis=0)) and np.allclose(opened.target_std, vectors.std(axis=0))
    _edit(folder, **own, **{name: [change(card[name][0]), *card[name][1:]]})
    with pytest.raises(DataError, match=r"card\.json"):
        open_sources(config)


def test_a_licence_may_be_written_into_a_card(folder):
    _edit(folder, licence="CC0")
    assert open_sources(experiment(folder, 9))[0].packed.card.licence == "CC0"
