"""Wrappers of training programs come off, each with a line; what is ambiguous or not plain tensors is refused."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.errors import CheckpointError
from pretrain.models.exchange.torch_files import load_pickled, unwrapped

PATH = Path("model.pth")
BODY: dict[str, Any] = {"patch_embed.proj.weight": torch.ones(2), "blocks.0.norm1.bias": torch.zeros(3)}


def named(prefix: str, other: dict[str, Any] | None = None) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in BODY.items()} | (other or {})


CASES: dict[str, tuple[Any, list[str]]] = {
    "plain": (BODY, []),
    "DDP": (named("module."), ["'module.' removed"]),
    "DDP of a compiled model": (named("module._orig_mod."), ["'_orig_mod.' removed", "'module.' removed"]),
    "a compiled model of DDP": (named("_orig_mod.module."), ["'_orig_mod.' removed", "'module.' removed"]),
    "compiled blocks": (
        {"patch_embed.proj.weight": BODY["patch_embed.proj.weight"], "blocks.0._orig_mod.norm1.bias": torch.zeros(3)},
        ["'_orig_mod.' removed"],
    ),
    "MAE and DeiT": ({"model": BODY, "epoch": 3}, ["tensors under 'model'; not read: epoch"]),
    "an average beside it": (
        {"state_dict": {}, "state_dict_ema": BODY},
        ["tensors under 'state_dict_ema'; not read: state_dict"],
    ),
    "EMA": ({"model_ema": named("module.")}, ["tensors under 'model_ema'", "'module.' removed"]),
    "nested": ({"model": {"state_dict": BODY}}, ["tensors under 'model'", "tensors under 'state_dict'"]),
    "DINO": (
        {"student": {}, "teacher": named("module.backbone.", {"module.head.mlp.0.weight": torch.ones(1)})},
        [
            "tensors under 'teacher'; not read: student",
            "'module.' removed",
            "'backbone.' removed from the tensors' names; 1 tensors beside it are left out, such as head.mlp.0.weight",
        ],
    ),
}


@pytest.mark.parametrize(("content", "expected"), list(CASES.values()), ids=list(CASES))
def test_each_wrapper_is_taken_off_and_named(content: Any, expected: list[str]) -> None:
    lines: list[str] = []
    state = unwrapped(content, PATH, lines.append)
    assert state.keys() == BODY.keys() and all(torch.equal(state[name], BODY[name]) for name in BODY)
    assert len(lines) == len(expected)
    assert all(words in line for words, line in zip(expected, lines, strict=True)), lines


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({}, "no tensors in it: it has nothing"),
        ({"optimizer": {}, "epoch": 1}, "no tensors in it: it has epoch, optimizer.*looked for under"),
        (BODY | {"epoch": 1}, "epoch is not a tensor"),
        (BODY | named("_orig_mod."), "two tensors have the same name"),
    ],
)
def test_what_is_not_one_set_of_tensors_is_refused(content: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        unwrapped(content, PATH, lambda line: None)


def test_only_tensors_and_plain_values_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": OrderedDict(BODY), "args": Namespace(lr=0.1), "epoch": 3}, path)
    assert load_pickled(path)["args"].lr == 0.1
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"not a complete file of torch\.save"):
        load_pickled(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear.*nothing is unpickled.*safetensors"):
        load_pickled(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_pickled(tmp_path / "none.pth")
