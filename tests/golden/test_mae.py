"""The masked autoencoder equals transformers' ViTMAE for the same weights and masks; both programs' files are read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import load_any
from pretrain.models.exchange.huggingface import read_huggingface
from pretrain.models.families.registry import adapt_state_dict, build_model, num_parameters
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.objectives.masked_autoencoding import MaskedAutoencoding
from pretrain.objectives.protocol import MicroBatch
from tests.golden.exchange import filled
from tests.golden.test_pos_embed_kinds import maes_table

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 32,
    "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}  # fmt: skip
SLOTS = np.array([5, 11, 2])


def peer(normalised: bool, settings: dict[str, Any]) -> ViTMAEForPreTraining:
    """transformers' network with random weights, but the fixed positions of the published ones."""
    net = filled(ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=normalised, mask_ratio=0.75, **settings)))
    side = net.config.image_size // net.config.patch_size
    for table in (net.vit.embeddings.position_embeddings, net.decoder.decoder_pos_embed):
        table.data = with_class_token(maes_table((side, side), table.shape[2]))
    return net


def with_class_token(table: Tensor) -> Tensor:
    return torch.nn.functional.pad(table, (0, 0, 1, 0))


def read(net: ViTMAEForPreTraining, folder: Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    net.save_pretrained(folder)
    return read_huggingface(folder)


@pytest.mark.parametrize(
    ("normalised", "settings"),
    [
        (True, SMALL),
        pytest.param(False, SMALL, marks=pytest.mark.slow),
        pytest.param(True, {}, marks=pytest.mark.slow),
    ],
    ids=["normalised", "pixels", "MAE-B"],
)
def test_loss_and_gradients_equal_transformers(normalised: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    net = peer(normalised, settings)
    state, about = read(net, tmp_path / "weights")
    assert about.model.decoder is not None and about.model.pos_embed == "sincos2d_mae"
    model: Any = build_model(about.model.model_copy(update={"patch_drop": 0.75}), 0)
    model.load_state_dict(state, strict=True)
    size = model.shape.img_size
    images = torch.randn(len(SLOTS), 3, *size, generator=torch.Generator().manual_seed(0))
    kept = kept_patches(SLOTS, model.shape, seed=3)
    assert kept is not None and kept.shape[1] == model.shape.num_patches // 4
    theirs = net(images, noise=torch.ones(len(SLOTS), model.shape.num_patches).scatter(1, kept, 0.0))
    batch = MicroBatch(images, torch.zeros(len(SLOTS), 1), slots=torch.from_numpy(SLOTS))
    loss = MaskedAutoencoding(model.shape, 3, normalised)(model, batch)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(images, kept=kept), theirs.logits, rtol=1e-4, atol=1e-5)
    theirs.loss.backward()
    loss.backward()
    gradients = copy.deepcopy(net)  # transformers' gradients under our names, as the reader of weights has them
    for ours, one in zip(gradients.parameters(), net.parameters(), strict=True):
        if one.grad is not None:
            ours.data = one.grad
    expected, _ = read(gradients, tmp_path / "gradients")
    for name, parameter in model.named_parameters():
        bound = 1e-5 * max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=bound, msg=name)


def test_published_number_of_parameters() -> None:
    """MAE-B has 111.9 M with its two position tables of 197 rows, which are not stored here."""
    config = ModelConfig(variant="B/16", pos_embed="sincos2d_mae", decoder={})  # type: ignore[arg-type]
    with torch.device("meta"):
        net = ViTMAEForPreTraining(ViTMAEConfig())
    assert num_parameters(config, 0) == net.num_parameters() - 197 * (768 + 512)


@pytest.mark.slow
def test_without_a_choice_of_patches_it_gives_the_features_of_the_class_token(tmp_path: Path) -> None:
    net = peer(True, {**SMALL, "image_size": 32})
    net.config.mask_ratio = 0.0
    state, about = read(net, tmp_path)
    model = build_model(about.model, 0)
    model.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), net.vit(images).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)


def test_a_decoder_unlike_ours_is_left_out_and_named(tmp_path: Path) -> None:
    net, said = peer(True, SMALL), []
    with torch.no_grad():
        net.decoder.decoder_pos_embed[0, 3, 2] += 0.01
    net.save_pretrained(tmp_path)
    _, about = read_huggingface(tmp_path, said.append)
    assert about.model.decoder is None and about.model.pos_embed == "learned_1d"
    assert "decoder.decoder_pos_embed is not MAE's fixed table, so only the encoder is read" in said[0]


# ── MAE's own checkpoints ──


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a small encoder with the published decoder, under the names of MAE's models_mae.py, and ours."""
    config = ModelConfig(variant="nano/16", img_size=32, pos_embed="sincos2d_mae", decoder={})  # type: ignore[arg-type]
    shapes = parameter_shapes(config, 0)
    ours = {name: torch.full(shape, 0.1 * number) for number, (name, shape) in enumerate(shapes.items())}
    theirs = {name.replace("decoder.", "decoder_"): tensor for name, tensor in ours.items()}
    theirs["mask_token"] = theirs.pop("decoder_mask_token")
    for name, width in (("pos_embed", 96), ("decoder_pos_embed", 512)):
        theirs[name] = with_class_token(maes_table((2, 2), width))
    return theirs, ours


def test_its_checkpoint_is_read(published: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path) -> None:
    theirs, ours = published
    torch.save({"model": theirs, "epoch": 7}, tmp_path / "checkpoint-7.pth")
    state, about = load_any(tmp_path / "checkpoint-7.pth")
    assert (about.model.variant, about.model.img_size, about.num_classes) == ("nano/16", 32, 0)
    assert about.model.decoder is not None and about.mean == (0.485, 0.456, 0.406)
    assert state.keys() == ours.keys() and all(torch.equal(state[name], ours[name]) for name in ours)


@pytest.mark.slow
def test_other_checkpoints_are_refused(published: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path) -> None:
    theirs, _ = published
    trained = {**theirs, "decoder_pos_embed": theirs["decoder_pos_embed"] + 0.01}
    small = {name: tensor for name, tensor in theirs.items() if not name.startswith("decoder_blocks.7.")}
    more = {**theirs, "blocks.0.attn.gate.weight": torch.zeros(96, 96)}
    cases = {"decoder.pos_embed is not the fixed": trained, "record numbers of heads": small, "has no place": more}
    for message, state in cases.items():
        torch.save(state, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=message):
            load_any(tmp_path / "file.pth")


# ── what becomes of the encoder ──


def test_fine_tuning_drops_the_decoder_and_trains_the_positions(tmp_path: Path) -> None:
    """Positions as the published fine-tuning has them: transformers' table, interpolated by torch."""
    net = peer(True, SMALL)
    state, about = read(net, tmp_path)
    sizes = about.model.model_dump(exclude_defaults=True) | {"img_size": 64, "pool": "avg_norm"}
    sizes |= {"decoder": None, "pos_embed": "learned_1d"}
    tuned = build_model(ModelConfig.model_validate(sizes), 5)
    fitted, report = adapt_state_dict(state, about, tuned, head="replace", filter="bicubic", seed=0)
    tuned.load_state_dict(fitted, strict=True)
    assert "the decoder (43 tensors)" in report.dropped and sorted(report.new) == ["head.bias", "head.weight"]
    assert any("starts as the fixed table sincos2d_mae" in note for note in report.notes)
    table = net.vit.embeddings.position_embeddings.detach()
    grid = table[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (8, 8), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(fitted["pos_embed"], torch.cat([table[:, :1], resized], 1), rtol=1e-5, atol=1e-5)
