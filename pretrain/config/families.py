"""The model families: which settings each one reads and what it supports. Does not import torch.

``model.name`` is the name of a family (``vit``), or a family and one of its models (``timm/pvt_v2_b2``). A new family
is a row here and a module of the same name in ``pretrain/models/families``, which implements it. All other code asks
the row or that module; no code compares ``model.name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FamilyTraits:
    """The properties of a family that are known without building its network.

    Attributes:
        form: how ``model.name`` is written; ``NAME`` stands for one of several models.
        about: a remark on ``form`` for error messages.
        keys: the keys of ``model`` that it reads. Any other key must keep its default.
        needed: keys without a usable default → hint for the error message.
        refused_kwargs: keys of ``model.kwargs`` that other settings decide → what to use instead.
        packages: packages needed to compute its tensors and costs; empty: closed forms that need no torch.
        policies: values of ``cluster.activation_checkpointing``, from the fastest to the most memory-saving;
            ``every_k`` stands for ``every_2``, ``every_3``, ….
        can_mask: it supports corrupted patches and decoders (``objective.name: masked_patches`` and ``mae``).
        can_be_dense: it can output logits for every pixel (``model.head: dense``).
        has_plain_head: its head is the dense layer ``head``, so it can be rescaled to the units of a regression.
        takes_drop_path: drop-path masks are an argument of its forward pass, as functions of seed and slot; otherwise
            the network draws its own from torch's generator.
        has_global_attention: all patch tokens attend to each other in every block, as the figures show.
        takes_sequences: images may keep their aspect ratio, as padded sequences of patches.
        formats: values of ``--format`` that ``pipelines export`` can write.
    """

    form: str
    keys: frozenset[str]
    about: str = ""
    needed: Mapping[str, str] = field(default_factory=dict)
    refused_kwargs: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("none",)
    can_mask: bool = False
    can_be_dense: bool = False
    has_plain_head: bool = False
    takes_drop_path: bool = False
    has_global_attention: bool = False
    takes_sequences: bool = False
    formats: tuple[str, ...] = ("onnx",)

    def takes_policy(self, policy: str) -> bool:
        """Whether ``cluster.activation_checkpointing: policy`` works for its models."""
        return ("every_k" if policy.startswith("every_") else policy) in self.policies

    def name_schema(self) -> dict[str, str]:
        """The JSON schema of ``model.name``."""
        family, slash, _ = self.form.partition("/")
        return {"pattern": f"^{family}/."} if slash else {"const": family, "default": family}


_EVERY_FAMILY = {"img_size", "head_bias", "head_init", "dropout", "drop_path"}

FAMILIES: dict[str, FamilyTraits] = {
    # what model.name starts with, and the module in pretrain/models/families
    "vit": FamilyTraits(
        form="vit",
        keys=frozenset(
            _EVERY_FAMILY
            | {"variant", "embed_dim", "depth", "num_heads", "mlp_dim", "gelu", "layer_norm_eps", "layer_scale"}
            | {"class_token", "distilled", "mask_token", "decoder", "num_registers", "pool", "head"}
            | {"block", "norm", "mlp", "qkv_bias", "qk_norm", "gated_attention"}
            | {"pos_embed", "pos_embed_placement", "pos_embed_prefix"}
            | {"rope", "rope_temperature", "rope_grid", "rope_register_temperature"}
            | {"representation_size", "drop_path_shape", "patch_drop", "patch_sizes"}
        ),
        needed={"variant": "name a size and a patch, such as B/16 or H/14"},
        policies=("none", "selective", "every_k", "full"),
        can_mask=True,
        can_be_dense=True,
        has_plain_head=True,
        takes_drop_path=True,
        has_global_attention=True,
        takes_sequences=True,
        formats=("timm", "hf", "npz", "onnx"),
    ),
    "timm": FamilyTraits(
        form="timm/NAME",
        about="timm's models",
        keys=frozenset(_EVERY_FAMILY | {"kwargs"}),
        refused_kwargs={
            "img_size": "use model.img_size",
            "num_classes": "use data.num_classes",
            "drop_rate": "use model.dropout",
            "drop_path_rate": "use model.drop_path",
            "in_chans": "images have three channels",
            "pretrained": "use init.from",
            "pretrained_cfg": "use init.from",
            "checkpoint_path": "use init.from",
            "features_only": "a classifier is trained",
            "scriptable": "it has no use here",
            "exportable": "it has no use here",
        },
        packages=("torch", "timm"),
        policies=("none", "full"),
        formats=("timm", "onnx"),
    ),
    "hf": FamilyTraits(
        form="hf/NAME",
        about="transformers' classes of images",
        keys=frozenset(_EVERY_FAMILY | {"kwargs"}),
        refused_kwargs={
            "image_size": "use model.img_size",
            "num_labels": "use data.num_classes",
            "id2label": "use data.num_classes",
            "label2id": "use data.num_classes",
            "hidden_dropout_prob": "use model.dropout",
            "drop_path_rate": "use model.drop_path",
            "num_channels": "images have three channels",
            "problem_type": "use objective",
        },
        packages=("torch", "transformers"),
        policies=("none", "every_k", "full"),
        has_plain_head=True,
        formats=("hf", "onnx"),
    ),
}


def family_name(name: str) -> str | None:
    """The key of ``FAMILIES`` that ``model.name: name`` belongs to; None if there is none."""
    family, slash, model = name.partition("/")
    if family not in FAMILIES or bool(slash) != ("/" in FAMILIES[family].form) or bool(slash) != bool(model):
        return None
    return family


def known_forms() -> str:
    """All forms of ``model.name``, for an error message."""
    return " and ".join(f"{row.form} ({row.about})" if row.about else row.form for row in FAMILIES.values())


def forms_where(holds: Callable[[FamilyTraits], bool]) -> str:
    """The forms of ``model.name`` of the families for which ``holds`` is true, for an error message."""
    return " or ".join(row.form for row in FAMILIES.values() if holds(row))
