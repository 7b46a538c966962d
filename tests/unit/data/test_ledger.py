"""The ledger: what it counts, prints and merges, and that it notices what was forgotten."""

from __future__ import annotations

import json
import os

import pytest

from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import Card
from pretrain.errors import DataError


def walked() -> Ledger:
    ledger = Ledger()
    ledger.found("directory entries", 8)
    ledger.used("directory entries", "images", 3)
    ledger.used("directory entries", "folders")
    for name in ("a", "b", "c"):
        ledger.lost("directory entries", "hidden", f".{name}.jpg")
    ledger.lost("directory entries", "dangling link", os.fsdecode(b"caf\xe9.jpg"))
    ledger.found("images", 3)
    ledger.used("images", "in train", 3)
    return ledger


def test_a_ledger_prints_each_loss_with_its_reason_and_the_first_of_it() -> None:
    ledger = walked()
    ledger.found("directory entries", 1200)
    ledger.lost("directory entries", "hidden", ".d.jpg", count=1200)
    assert ledger.lines() == [
        "1,208 directory entries = 3 images + 1 folder + 1,204 left out:",
        "     1,203  hidden: .a.jpg, .b.jpg, .c.jpg, …",
        "         1  dangling link: caf\\xe9.jpg",
        "3 images = 3 in train",
    ]
    ledger.check("here")


@pytest.mark.parametrize("change", [{"count": 1}, {"count": -1}])
def test_what_was_forgotten_or_counted_twice_is_an_error(change: dict[str, int]) -> None:
    ledger = walked()
    ledger.found("images", **change)
    with pytest.raises(DataError, match=f"data: the ledger does not add up: {3 + change['count']} images were found"):
        ledger.check("data")


def test_ledgers_of_tasks_are_merged() -> None:
    ledger, other = walked(), walked()
    other.found("labels", 2)
    other.lost("labels", "not chosen", count=2)
    ledger.merge(other)
    account = ledger.accounts["directory entries"]
    assert (account.found, account.used, account.num_lost) == (16, {"images": 6, "folders": 2}, 8)
    assert account.lost["hidden"].examples == [".a.jpg", ".b.jpg", ".c.jpg"]
    assert account.lost["dangling link"].examples == ["caf\\xe9.jpg", "caf\\xe9.jpg"]
    assert ledger.accounts["labels"].num_lost == 2
    ledger.check("here")
    assert Ledger.of_dict(json.loads(json.dumps(ledger.to_dict()))).to_dict() == ledger.to_dict()


def test_a_card_keeps_the_ledger_and_cards_without_one_are_read() -> None:
    words = {"name": "x", "split": "train", "source": "y", "licence": "z", "classes_digest": "", "index_digest": ""}
    numbers = dict.fromkeys(("num_samples", "num_classes", "max_labels", "num_shards", "num_bytes", "shuffle_seed"), 1)
    card = Card.model_validate({**words, **numbers, "labels": "single", "ledger": walked().to_dict()})
    again = Card.model_validate_json(card.to_json())
    assert Ledger(again.ledger).to_dict() == walked().to_dict()
    page = card.to_markdown().decode()
    assert "8 directory entries = 3 images + 1 folder + 4 left out:" in page
    content = json.loads(card.to_json())
    del content["ledger"]
    assert Card.model_validate(content).ledger == {}
