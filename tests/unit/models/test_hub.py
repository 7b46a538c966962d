"""Weights by the name of a repository: from the hub's cache, or an error with the command to run elsewhere."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import timm
import torch

from pretrain.check.derived import describe
from pretrain.errors import SetupError
from pretrain.models.exchange.formats import load_any
from pretrain.models.exchange.hub import local
from tests.sweeps.huggingface import save


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def cached(repository: str, cache: Path) -> Path:
    """The folder of the cache in which the files of a repository belong, as huggingface_hub lays it out."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    place = cache / f"models--{repository.replace('/', '--')}"
    for folder in (place / "refs", place / "snapshots" / revision):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    return place / "snapshots" / revision


def test_a_repository_in_the_cache_is_read(tmp_path: Path) -> None:
    folder = cached("someone/tower", tmp_path / "cache")
    save("DINOv2", folder)
    path = local("hf/someone/tower")
    assert path == folder
    assert load_any(path)[1].model.name == "vit"


NAME, TAG = "test_vit", "r160_in1k"  # the first of timm's tags, and the least of its ViTs


@pytest.fixture
def of_timm(tmp_path: Path) -> Path:
    """The repository of NAME, as timm publishes it, but with random weights."""
    folder = cached(f"timm/{NAME}.{TAG}", tmp_path / "cache")
    timm.models.save_for_hf(timm.create_model(f"{NAME}.{TAG}"), str(folder), safe_serialization=True)
    return folder


def test_a_name_of_timm_gives_the_weights_that_timm_loads(of_timm: Path) -> None:
    expected = timm.create_model(NAME, pretrained=True).state_dict()
    for source in (f"timm/{NAME}", f"timm/{NAME}.{TAG}", f"timm/{NAME}/"):
        assert local(source) == of_timm
    state, metadata = load_any(local(f"timm/{NAME}"))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    described = describe(f"timm/{NAME}")
    assert described is not None
    assert described.model == metadata.model


def test_weights_that_timm_cached_without_their_config_are_not_enough(of_timm: Path) -> None:
    (of_timm / "config.json").unlink()
    with pytest.raises(SetupError, match=rf"has no config\.json\)(.|\n)*hf download timm/{NAME}\.{TAG} --include"):
        local(f"timm/{NAME}")


def test_tensors_that_two_architectures_share_keep_their_own(tmp_path: Path) -> None:
    shared = "vit_base_patch16_clip_quickgelu_224.openai"
    folder = cached("timm/vit_base_patch16_clip_224.openai", tmp_path / "cache")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    (folder / "model.safetensors").touch()
    with pytest.raises(SetupError, match="describes vit_base_patch16_clip_224, not vit_base_patch16_clip_quickgelu"):
        local(f"timm/{shared}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_bas_patch16_224", "did you mean timm/vit_base_patch16_224 "),
        ("vit_base_patch16_224.mine", "no pretrained weights 'mine' of vit_base_patch16_224; choose .* augreg_in1k, "),
        ("vit_small_resnet26d_224", "no pretrained weights 'untrained' of vit_small_resnet26d_224; choose another"),
        ("vit_tiny_patch16_224_in21k", "timm calls these weights vit_tiny_patch16_224.augreg_in21k today"),
        ("gcvit_tiny", 'from https://.*: "gcvit_tiny.in1k"'),
        ("vit_tiny_patch16_224", "hf download timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k --include 'config.json' "),
    ],
)
def test_a_name_of_timm_without_weights_here(name: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        local(f"timm/{name}")


def test_without_network_the_error_names_the_command() -> None:
    with pytest.raises(SetupError) as caught:
        local("hf/facebook/dinov2-base")
    assert "hf download facebook/dinov2-base --include 'config.json' " in str(caught.value)
    assert "--local-dir dinov2-base" in str(caught.value)


@pytest.mark.parametrize("source", ["hf/someone/tower", "hf/a", "runs/x", "hf/a/b/c", "timm/a/b"])
def test_a_path_is_itself(source: str, tmp_path: Path) -> None:
    (tmp_path / "hf/someone/tower").mkdir(parents=True)
    assert local(source) == Path(source)
