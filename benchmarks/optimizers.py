"""One update of a Vision Transformer by each optimiser, ours against the libraries', on one device.

    python -m benchmarks.optimizers                    # S/16
    python -m benchmarks.optimizers --variant B/16

Only the update is timed, with the same weights and gradients. The peers run interleaved with ours, and the median of
the rounds is reported, and the slowest one: Shampoo decomposes its factors in every fifth update. ``state_mib`` is what
the optimiser keeps between updates. Ends with one line of JSON.

Meta's Shampoo is compared if its repository (github.com/facebookresearch/optimizers) is on PYTHONPATH, the
authors' SOAP if pytorch-optimizer is installed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import timm.optim
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pipelines.terminal.arguments import program_parser
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.optim.choice import Optim
from pretrain.models.families.registry import build_model, init_weights
from pretrain.optim.groups import is_kernel
from pretrain.optim.optimizers import build_optimizer

NUM_CLASSES, LR, DECAY = 1000, 1e-3, 0.1
EVERY = 5  # updates between decompositions

Updated = list[torch.optim.Optimizer]
Make = Callable[[nn.Module], Updated]


def ours(name: str, **settings: Any) -> Make:
    """Our optimiser of this name, with a constant learning rate and its defaults for all other settings."""
    given = {"name": name, "lr": LR, "weight_decay": DECAY, "schedule": {"name": "constant"}} | settings
    config = TypeAdapter(Optim).validate_python(given)
    return lambda model: [build_optimizer(model, config)]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Kernels, which decay, and the rest."""
    named = dict(model.named_parameters())
    kernels = [one for name, one in named.items() if is_kernel(name, one.ndim)]
    rest = [one for name, one in named.items() if not is_kernel(name, one.ndim)]
    return [{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]


def hidden_matrices(named: dict[str, nn.Parameter]) -> set[str]:
    """Names of the matrices of the blocks."""
    return {name for name, one in named.items() if one.ndim == 2 and name.startswith("blocks.")}


def torch_muon(model: nn.Module) -> Updated:
    """torch's Muon, which takes matrices only, for those of the blocks; AdamW for the rest."""
    named = dict(model.named_parameters())
    hidden = hidden_matrices(named)
    muon = torch.optim.Muon([named[name] for name in hidden], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([one for name, one in named.items() if name not in hidden], lr=LR)]


def meta_shampoo(model: nn.Module) -> Updated:
    """Meta's for the matrices of the blocks, with qkv as one matrix; AdamW for the rest."""
    from distributed_shampoo import (  # type: ignore[import-not-found]
        AdamPreconditionerConfig,
        DistributedShampoo,
        SingleDeviceDistributedConfig,
    )

    named = dict(model.named_parameters())
    hidden = hidden_matrices(named)
    shampoo = DistributedShampoo(
        [named[name] for name in hidden],
        lr=LR,
        betas=(0.9, 0.999),
        weight_decay=DECAY,
        max_preconditioner_dim=1024,
        precondition_frequency=EVERY,
        grafting_config=AdamPreconditionerConfig(beta2=0.999, epsilon=1e-8),
        distributed_config=SingleDeviceDistributedConfig(target_parameter_dimensionality=2),
    )
    return [shampoo, torch.optim.AdamW([one for name, one in named.items() if name not in hidden], lr=LR)]


def published_soap(model: nn.Module) -> Updated:
    """The authors' for the matrices of the blocks, with qkv as one matrix and without blocks; AdamW for the rest."""
    from pytorch_optimizer import SOAP  # type: ignore[import-not-found]

    named = dict(model.named_parameters())
    hidden = hidden_matrices(named)
    soap = SOAP([named[name] for name in hidden], lr=LR, weight_decay=DECAY, precondition_frequency=EVERY)
    return [soap, torch.optim.AdamW([one for name, one in named.items() if name not in hidden], lr=LR)]


def meta_schedule_free(model: nn.Module) -> Updated:
    """Meta's schedule-free AdamW."""
    from schedulefree import AdamWScheduleFree  # type: ignore[import-not-found]

    optimizer = AdamWScheduleFree(groups_of(model), lr=LR)
    optimizer.train()
    return [optimizer]


OPTIMIZERS: dict[str, dict[str, Make]] = {
    "adamw": {"ours": ours("adamw"), "torch": lambda model: [torch.optim.AdamW(groups_of(model), lr=LR)]},
    "lamb": {"ours": ours("lamb"), "timm": lambda model: [timm.optim.Lamb(groups_of(model), lr=LR)]},
    "adafactor": {
        "ours": ours("adafactor"),
        "timm": lambda model: [timm.optim.AdafactorBigVision(groups_of(model), lr=LR, momentum_dtype="float32")],
    },
    "muon": {
        "ours": ours("muon"),
        "torch": torch_muon,
        "timm": lambda model: [timm.optim.Muon(groups_of(model), lr=LR, ns_coefficients="original")],
    },
    "soap": {"ours": ours("soap", precondition_frequency=EVERY), "pytorch-optimizer": published_soap},
    "shampoo": {"ours": ours("shampoo", precondition_frequency=EVERY), "meta": meta_shampoo},
    "schedule_free": {"ours": ours("schedule_free"), "package": meta_schedule_free},
}
NEEDS = {  # libraries that may be missing
    "meta": "distributed_shampoo",
    "pytorch-optimizer": "pytorch_optimizer",
    "package": "schedulefree",
}


def seconds(optimizers: Updated, device: torch.device) -> float:
    """Time of one update."""
    start = time.perf_counter()
    for optimizer in optimizers:
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def state_bytes(optimizers: Updated) -> int:
    """Bytes of the tensors that they keep."""
    return sum(bytes_in(one.state) for one in optimizers)


def bytes_in(value: Any) -> int:
    """Bytes of the tensors in a state, which some libraries nest in lists and objects."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_in, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(bytes_in, value))
    return bytes_in(vars(value)) if hasattr(value, "__dict__") else 0


def measure(peers: dict[str, Make], variant: str, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Library → milliseconds of an update and of the slowest one, and MiB of its state."""
    running = {}
    for name, make in peers.items():
        model = build_model(ModelConfig(variant=variant), NUM_CLASSES)
        init_weights(model, 0)
        model.to(device)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        running[name] = make(model)
        seconds(running[name], device)  # makes the states
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, optimizers in running.items():
            times[name].append(seconds(optimizers, device))
    return {
        name: {
            "ms": 1000 * statistics.median(times[name]),
            "slowest_ms": 1000 * max(times[name]),
            "state_mib": state_bytes(running[name]) / 2**20,
        }
        for name in running
    }


def in_words(row: dict[str, float]) -> str:
    """A row of the table."""
    return f"{row['ms']:>9.1f} ms per update, at most {row['slowest_ms']:>9.1f} ms, state {row['state_mib']:>7.1f} MiB"


def main() -> None:
    """Prints a table, then JSON."""
    parser = program_parser("python -m benchmarks.optimizers", __doc__)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"benchmark": "optimizers", **vars(options), "device": device.type, "optimizers": {}}
    for name in options.only:
        peers = {peer: make for peer, make in OPTIMIZERS[name].items() if find_spec(NEEDS.get(peer, "torch"))}
        rows = report["optimizers"][name] = measure(peers, options.variant, options.rounds, device)
        for library in OPTIMIZERS[name]:
            print(f"{name:<13} {library:<7} " + (in_words(rows[library]) if library in rows else "not installed"))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
