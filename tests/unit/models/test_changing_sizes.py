"""A network in training at another size of images computes what fine-tuning at that size computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed as timm_resample
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import accept_sizes, adapt_state_dict, build_model
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.surgery import Filter, resampled_kernel, resize_pos_embed, resized_table
from pretrain.models.vit import VisionTransformer
from tests.golden.twins import our_model, small_config, some_images

HALF = (0.5, 0.5, 0.5)
FILTERS: list[Filter] = ["bilinear_corners", "bicubic", "bicubic_aa"]
OWN, OTHER = (32, 48), (48, 16)
KINDS: dict[str, dict[str, Any]] = {
    "learned_1d": {},
    "learned_1d without prefix": {"pos_embed_prefix": False, "num_registers": 2},
    "learned_1d before every block": {"pos_embed_placement": "every_layer_shared"},
    "sincos": {"pos_embed": "sincos2d_timm"},
    "axial": {"pos_embed": "none", "rope": "axial"},
    "mixed and learned_1d": {"rope": "mixed"},
    "none": {"pos_embed": "none", "pool": "map"},
    "distilled": {"distilled": True},
}
FIXED: dict[str, dict[str, Any]] = {
    "learned_2d": {"pos_embed": "learned_2d"},
    "relative_bias": {"pos_embed": "relative_bias"},
    "relative_1d": {"pos_embed": "relative_1d"},
    "every_layer": {"pos_embed_placement": "every_layer"},
}


def network(config: ModelConfig) -> VisionTransformer:
    """With the subclass that the config needs, and weights far from each other."""
    net = build_model(config, 11)
    generator = torch.Generator().manual_seed(1)
    net.load_state_dict(
        {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in net.state_dict().items()}
    )
    assert isinstance(net, VisionTransformer)
    return net


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("grid", [(7, 3), (2, 9), (1, 5), (4, 6)])
def test_a_table_is_resized_as_saved_weights_are(grid: tuple[int, int], filter: Filter) -> None:
    table = torch.randn(1, 2 + 4 * 6, 16, generator=torch.Generator().manual_seed(1))
    expected = resize_pos_embed(table, (4, 6), grid, 2, filter)
    torch.testing.assert_close(resized_table(table, (4, 6), grid, 2, filter), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
def test_its_gradient_is_torchs(antialias: bool) -> None:
    table = torch.randn(1, 4 * 6, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seen = torch.randn(1, 6 * 3, 16, generator=torch.Generator().manual_seed(2))
    planes = table.unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    torchs = F.interpolate(planes, (6, 3), mode="bicubic", antialias=antialias).permute(0, 2, 3, 1).flatten(1, 2)
    (expected,) = torch.autograd.grad((torchs * seen).sum(), table)
    ours = resized_table(table, (4, 6), (6, 3), 0, "bicubic_aa" if antialias else "bicubic")
    (found,) = torch.autograd.grad((ours * seen).sum(), table)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))
def test_logits_are_those_of_a_model_fitted_to_the_size(options: dict[str, Any]) -> None:
    config = small_config(img_size=OWN, **options)
    model = network(config)
    fitted = build_model(config.model_copy(update={"img_size": OTHER}), 11)
    about = WeightsMetadata.of(config, 11, HALF, HALF)
    state, _ = adapt_state_dict(model.state_dict(), about, fitted, head="keep", filter="bicubic_aa", seed=0)
    fitted.load_state_dict(state)
    images = some_images(fitted)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="expected, not"):
        model(images)
    own = model(some_images(model))
    accept_sizes(model, [Tiling(OTHER)], "bicubic_aa")
    torch.testing.assert_close(model(images), fitted(images), rtol=1e-5, atol=1e-5)
    assert torch.equal(model(some_images(model)), own), "its own size is computed as before"


@pytest.mark.parametrize("patch", [4, 16])
@pytest.mark.parametrize("options", [KINDS["learned_1d"], KINDS["axial"], KINDS["distilled"]])
def test_logits_of_other_patches_are_those_of_a_model_fitted_to_them(options: dict[str, Any], patch: int) -> None:
    config = small_config(img_size=OWN, patch_sizes=(patch,), **options)
    model, tiling = network(config), Tiling(OTHER, patch)
    fitted = build_model(config.at_tiling(tiling), 11)
    about = WeightsMetadata.of(config, 11, HALF, HALF)
    state, _ = adapt_state_dict(model.state_dict(), about, fitted, head="keep", filter="bicubic", seed=0)
    fitted.load_state_dict(state)
    accept_sizes(model, [tiling], "bicubic")
    images = some_images(fitted)  # type: ignore[arg-type]
    torch.testing.assert_close(model(images, patch=patch), fitted(images), rtol=1e-5, atol=1e-5)


def test_kernels_learn_through_the_resampling() -> None:
    """Equal to the gradient of timm's resampling, which is linear in the kernel."""
    kernel = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seen = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((resampled_kernel(kernel, (12, 12)) * seen).sum(), kernel)
    units = torch.eye(64).unflatten(1, (1, 8, 8))
    by_unit = timm_resample(units, [12, 12])[:, 0]
    expected = torch.einsum("ndij,uij->ndu", seen, by_unit).unflatten(2, (8, 8))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_patches_are_left_out_of_the_grid_of_the_images() -> None:
    from pretrain.assembly.feeder import Feeder
    from tests.distributed.training import experiment
    from tests.unit.assembly.test_feeder import batch

    config = experiment(model__patch_drop=0.5, data__resolution=[[0, 4], ["50 %", 8]])
    model = build_model(config.model, config.num_outputs)
    accept_sizes(model, config.image_sizes.all, "bicubic")
    host = batch()
    host.images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    made = Feeder(config, model, None, torch.device("cpu")).prepare(host)  # type: ignore[arg-type]
    assert made.kept is not None and made.kept.shape == (4, 2) and made.kept.max() < 4
    assert model(made.images, made.drop_path, **made.options).shape == (4, config.num_outputs)


@pytest.mark.parametrize("options", FIXED.values(), ids=list(FIXED))
def test_positions_of_one_grid_are_refused(options: dict[str, Any]) -> None:
    model = our_model(small_config(**options))
    with pytest.raises(ConfigError, match=r"data.resolution: model.pos_embed.*cannot change.*or use model.name: vit"):
        accept_sizes(model, [Tiling(OTHER)], "bicubic")


def test_a_network_of_timm_takes_any_size_or_is_refused() -> None:
    resnet = build_model(ModelConfig(name="timm/resnet10t", img_size=32), 3)
    accept_sizes(resnet, [Tiling((64, 64))], "bicubic")
    assert resnet(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    vit = build_model(ModelConfig(name="timm/test_vit", img_size=32), 3)
    with pytest.raises(ConfigError, match="tensors of timm/test_vit belong to one size"):
        accept_sizes(vit, [Tiling((64, 64))], "bicubic")


# torch.compile itself looks at .grad of tensors that are not leaves, and hides the warning unless it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_every_size_is_compiled_once() -> None:
    """More sizes than Dynamo's limit of eight graphs, above which it would train without compilation."""
    torch._dynamo.reset()
    sides = [8 * number for number in range(1, 11)]
    model = our_model(small_config(img_size=(80, 80), depth=3))
    accept_sizes(model, [Tiling((side, side)) for side in sides], "bicubic")
    counter = CompileCounterWithBackend("eager")
    model.compile_blocks(backend=counter)  # type: ignore[arg-type]
    for side in [*sides, *sides[::-1]]:
        model(torch.zeros(2, 3, side, side)).sum().backward()
    assert counter.frame_count == len(sides)
    torch._dynamo.reset()
