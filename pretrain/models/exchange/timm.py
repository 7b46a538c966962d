"""timm's folders: ``config.json`` and ``model.safetensors``, as ``timm.create_model("local-dir:PATH")`` loads them.

timm builds the model that the folder describes, without memory, and its modules are asked what they compute: pooling,
form of GELU, epsilon. So a folder of any of its plain Vision Transformers can be read, and nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.architecture import named_config, refusal, refuse_inexpressible
from pretrain.models.exchange.preprocessing import from_timm, timm_settings
from pretrain.models.interop import check_tensors, read_tensors, save_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import STEM_BLOCKS

PROGRAM = "timm"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
EPSILON = 1e-6  # of timm's LayerNorm; config.json cannot name another
# timm's registered names by our size; any other size is vit_base with other numbers.
_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
_CARRIED = frozenset(
    {"class_token", "distilled", "num_registers", "layer_scale", "qk_norm", "pool", "pos_embed", "pos_embed_prefix"}
    | {"gelu", "layer_norm_eps"}
)


def write_timm(folder: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

    Args:
        folder: exists.
        state: whole tensors under our names, which are timm's.
        metadata: theirs; its ``eval_transform`` must be known.

    Raises:
        CheckpointError: timm cannot express the model or its preprocessing.
    """
    _refuse(metadata)
    config = json.dumps(_config(metadata), indent=2, ensure_ascii=False)
    save_weights(Path(folder) / WEIGHTS, state, metadata)
    (Path(folder) / CONFIG).write_text(config + "\n", encoding="utf-8")


def _refuse(metadata: WeightsMetadata) -> None:
    model = metadata.model
    if model.is_timm:
        return
    refuse_inexpressible(metadata, PROGRAM, "timm", _CARRIED)
    if model.pos_embed not in ("learned_1d", "none"):
        raise refusal(PROGRAM, "pos_embed", model.pos_embed)
    if model.layer_norm_eps != EPSILON:
        raise refusal(PROGRAM, "layer_norm_eps", model.layer_norm_eps)


def _config(metadata: WeightsMetadata) -> dict[str, Any]:
    names, ids, arguments = metadata.class_names, metadata.class_ids, _arguments(metadata)
    labels: dict[str, Any] = {} if names is None else {"label_names": list(ids or names)}
    if names is not None and ids is not None and len(set(ids)) == len(ids):
        labels["label_descriptions"] = dict(zip(ids, names, strict=True))
    return {
        "architecture": _architecture(metadata),
        "num_classes": metadata.num_classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [3, *metadata.img_size],
            "fixed_input_size": "img_size" in arguments,
            **timm_settings(metadata),
            "mean": list(metadata.mean),
            "std": list(metadata.std),
            "num_classes": metadata.num_classes,
            **_layers(metadata),
        },
        **labels,
    }


def _layers(metadata: WeightsMetadata) -> dict[str, Any]:
    """Names of the first and last layer, which timm exchanges for other channels and classes."""
    if metadata.model.is_timm:
        from timm.models import get_pretrained_cfg

        known: Any = get_pretrained_cfg(_architecture(metadata))
        return {name: getattr(known, name, None) for name in ("pool_size", "first_conv", "classifier")}
    first = "patch_embed.backbone.stem.conv" if metadata.shape.stem_blocks else "patch_embed.proj"
    last = ["head", "head_dist"] if metadata.model.distilled else "head"
    return {"pool_size": None, "first_conv": first, "classifier": last}


def model_arguments(metadata: WeightsMetadata) -> tuple[str, dict[str, Any]]:
    """What ``timm.create_model`` takes for the same architecture: a registered name and arguments."""
    return _architecture(metadata), _arguments(metadata)


def _architecture(metadata: WeightsMetadata) -> str:
    """A registered name; for a size of its own it is the name of a model that takes any size."""
    from timm import is_model

    if metadata.model.is_timm:
        return metadata.model.name.removeprefix("timm/")
    shape, model = metadata.shape, metadata.model
    if shape.stem_blocks:
        return {3: "vit_base_r50_s16_224", 4: "vit_large_r50_s32_224"}[len(shape.stem_blocks)]
    if model.distilled:
        return "deit_base_distilled_patch16_224"
    size = _SIZES.get(model.variant.split("/")[0], "base")
    name = f"vit_{size}_patch{shape.patch[0]}_224"
    return name if is_model(name) else "vit_base_patch16_224"


def _arguments(metadata: WeightsMetadata) -> dict[str, Any]:
    """Arguments of timm's constructor; all that shape the model are named, whatever the architecture's own are."""
    if metadata.model.is_timm:
        return _own_arguments(metadata)
    model, shape = metadata.model, metadata.shape
    arguments: dict[str, Any] = {
        "img_size": list(shape.img_size),
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": _mlp_ratio(shape.mlp_dim, shape.embed_dim),
        "class_token": model.class_token,
        "global_pool": {"token": "token", "norm_avg": "avg", "avg_norm": "avg", "map": "map"}[model.pool],
        "fc_norm": model.pool == "avg_norm",
        "act_layer": "gelu" if model.gelu == "erf" else "gelu_tanh",
        "qk_norm": model.qk_norm,
        "reg_tokens": model.num_registers,
        "pos_embed": "learn" if model.pos_embed == "learned_1d" else "none",
        "no_embed_class": not model.pos_embed_prefix,
    }
    if not shape.stem_blocks:
        arguments["patch_size"] = shape.patch[0]
    if model.layer_scale is not None:
        arguments["init_values"] = model.layer_scale
    return arguments


def _own_arguments(metadata: WeightsMetadata) -> dict[str, Any]:
    """Those of a model of timm's own; a network that takes images of any size has no ``img_size``."""
    import timm

    arguments = dict(metadata.model.kwargs)
    try:
        with torch.device("meta"):
            timm.create_model(_architecture(metadata), img_size=metadata.img_size, **arguments)
    except TypeError:
        return arguments
    return arguments | {"img_size": list(metadata.img_size)}


def _mlp_ratio(mlp_dim: int, embed_dim: int) -> float:
    """timm's ratio, whose product with the width it cuts to an integer."""
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else (mlp_dim + 0.5) / embed_dim


def read_timm(folder: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a folder of timm's.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is none of timm's plain Vision Transformers.
    """
    folder = Path(folder)
    twin = build_twin(folder)
    metadata = _described(twin, folder)
    state, _ = read_tensors(folder / WEIGHTS)
    if not metadata.num_classes:  # timm drops the head of a file where the config says that there is none
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "head_dist."))}
    check_tensors(state, metadata, folder / WEIGHTS)
    return state, metadata


def build_twin(folder: Path) -> nn.Module:
    """The model that a folder describes, built by timm on the meta device."""
    import timm

    try:
        json.loads((folder / CONFIG).read_bytes())
        with torch.device("meta"):
            return timm.create_model(f"local-dir:{folder}", pretrained=False)
    except OSError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error.strerror}; name a folder with {CONFIG}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder / CONFIG}: not JSON ({error}); copy or export the folder again") from error
    except (RuntimeError, TypeError, KeyError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: timm cannot build the model that it describes ({type(error).__name__}: {error}); "
            "install a timm that knows it, or export it again"
        ) from error


def _described(twin: Any, folder: Path) -> WeightsMetadata:
    from timm.data import resolve_model_data_config

    config, data = _model_config(twin, folder), resolve_model_data_config(twin)
    settings: dict[str, Any] = twin.pretrained_cfg
    labels, described = settings.get("label_names") or (), settings.get("label_descriptions") or {}
    fits = len(labels) == twin.num_classes > 0
    has_ids = fits and all(label in described for label in labels)
    try:
        return WeightsMetadata.of(
            config,
            twin.num_classes,
            data["mean"],
            data["std"],
            tuple(described.get(label, label) for label in labels) if fits else None,
            class_ids=tuple(labels) if has_ids else None,
            eval_transform=from_timm(data, _image_size(config)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{folder / CONFIG}: {where}: {first['msg']}; export it again") from error


def _model_config(twin: Any, folder: Path) -> ModelConfig:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Block, VisionTransformer

    where = folder / CONFIG
    if type(twin) not in (VisionTransformer, VisionTransformerDistilled) or type(twin.blocks[0]) is not Block:
        return _other_config(twin, where)
    block, patch = twin.blocks[0], twin.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise CheckpointError(f"{where}: patches of {patch} pixels are not read, only square ones; name other weights")
    options: dict[str, Any] = {
        "class_token": twin.has_class_token,
        "distilled": type(twin) is VisionTransformerDistilled,
        "num_registers": twin.num_reg_tokens,
        "pool": _pool(twin, where),
        "gelu": _gelu_form(block.mlp.act, where),
        "layer_norm_eps": _epsilon(twin, where),
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "pos_embed": "none" if twin.pos_embed is None else "learned_1d",
    }
    if twin.pos_embed is not None:
        options["pos_embed_prefix"] = not twin.no_embed_class
    if hasattr(block.ls1, "gamma"):
        options["layer_scale"] = getattr(block.ls1, "init_values", None) or 1e-5
    stem = getattr(twin.patch_embed, "backbone", None)
    return named_config(
        where,
        embed_dim=twin.embed_dim,
        depth=len(twin.blocks),
        mlp_dim=block.mlp.fc1.out_features,
        num_heads=block.attn.num_heads,
        patch=patch[0] if stem is None else _stem_stride(stem, where),
        stem="" if stem is None else "R50+",
        img_size=tuple(twin.patch_embed.img_size),
        **options,
    )


def _stem_stride(stem: Any, where: Path) -> int:
    """The total stride of a hybrid's ResNet, from its blocks per stage."""
    blocks = tuple(len(stage.blocks) for stage in getattr(stem, "stages", ()))
    strides = {known: stride for stride, known in STEM_BLOCKS.items()}
    if blocks not in strides:
        raise CheckpointError(f"{where}: a stem of {blocks} blocks is not read; known are {list(strides)}")
    return strides[blocks]


def _other_config(twin: Any, where: Path) -> ModelConfig:
    """The config of a model that is none of our Vision Transformers: timm's name and arguments."""
    from timm.data import resolve_model_data_config

    content = json.loads(where.read_bytes())
    arguments = {key: value for key, value in content.get("model_args", {}).items() if key != "img_size"}
    height, width = resolve_model_data_config(twin)["input_size"][1:]
    try:
        return ModelConfig(
            name=f"timm/{content['architecture']}",
            img_size=height if height == width else (height, width),
            kwargs=arguments,
        )
    except ValidationError as error:
        raise CheckpointError(f"{where}: model_args: {error.errors()[0]['msg']}; name other weights") from error


def _image_size(config: ModelConfig) -> tuple[int, int]:
    size = config.img_size
    return (size, size) if isinstance(size, int) else size


def _pool(twin: Any, where: Path) -> str:
    if twin.global_pool == "avg" and not twin.pool_include_prefix:
        return "norm_avg" if isinstance(twin.fc_norm, nn.Identity) else "avg_norm"
    if twin.global_pool in ("token", "map") and isinstance(twin.fc_norm, nn.Identity):
        return twin.global_pool
    raise CheckpointError(
        f"{where}: global_pool {twin.global_pool!r} with fc_norm {not isinstance(twin.fc_norm, nn.Identity)} and "
        f"pool_include_prefix {twin.pool_include_prefix} is no pooling of this program; it has token, avg and map"
    )


def _gelu_form(activation: nn.Module, where: Path) -> str:
    """Which form of GELU a module computes, by trying it."""
    probe = torch.linspace(-3, 3, 61)
    found = activation(probe)
    for form, approximate in (("erf", "none"), ("tanh", "tanh")):
        if torch.allclose(found, F.gelu(probe, approximate=approximate), rtol=0, atol=1e-6):
            return form
    raise CheckpointError(f"{where}: the activation {type(activation).__name__} is not GELU; name other weights")


def _epsilon(twin: nn.Module, where: Path) -> float:
    named = [(name, module) for name, module in twin.named_modules() if ".backbone." not in name]
    norms = [module for name, module in named if name.split(".")[-1].startswith(("norm", "fc_norm"))]
    found = {module.eps for module in norms if isinstance(module, nn.LayerNorm)}
    others = {type(m).__name__ for m in norms if not isinstance(m, (nn.LayerNorm, nn.Identity))}
    if len(found) != 1 or others:
        raise CheckpointError(f"{where}: norms {sorted(others)} with epsilon {sorted(found)}; one LayerNorm is read")
    return float(found.pop())
