"""FLOPs of training, where some weights may be frozen. Does not import torch.

A frozen weight has no gradient of its own, and nothing before the first trained one has any. Attention's products are
taken as equal in all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError
from pretrain.models.adapters import A, B, weight_of
from pretrain.models.families.registry import family_of, forward_macs, training_flops
from pretrain.sharding.weights import adapters_in, rules_of, shapes_of


def image_flops(experiment: Experiment) -> float:
    """FLOPs of training on one image, 2 per multiply-add; recomputation is not counted.

    Three forward passes where all weights are trained (``registry.training_flops``). It is the mean over the
    images of the run, where sizes change.
    """
    return mean_over_sizes(experiment, _flops_at_its_size, experiment.num_steps)


def flops_by_tiling(experiment: Experiment) -> dict[Tiling, float]:
    """Size of the images and patches → FLOPs of training on one image, as ``image_flops``."""
    if not experiment.changes_size:
        return {Tiling(experiment.model.size): _flops_at_its_size(experiment)}
    return {each: _flops_at_its_size(experiment.at_tiling(each)) for each in experiment.image_sizes.all}


def mean_over_sizes(experiment: Experiment, quantity: Callable[[Experiment], float], num_steps: int) -> float:
    """The mean of a quantity of one image over the sizes of the images in the first steps of a run.

    Args:
        experiment: its settings.
        quantity: an experiment with images of one size throughout → the quantity.
        num_steps: number of steps.
    """
    if not experiment.changes_size:
        return quantity(experiment)
    batches = experiment.batches
    counts = {each: count * batches.of(each) for each, count in batches.sizes.counts(max(1, num_steps)).items()}
    return sum(quantity(experiment.at_tiling(each)) * count for each, count in counts.items()) / sum(counts.values())


def flops_until(experiment: Experiment, num_steps: int) -> float:
    """FLOPs of the first steps of a run, as ``image_flops``."""
    return experiment.samples_until(num_steps) * mean_over_sizes(experiment, _flops_at_its_size, num_steps)


def _flops_at_its_size(experiment: Experiment) -> float:
    model, num_outputs = experiment.trained_model, experiment.num_outputs
    if not has_frozen(experiment):
        return training_flops(model, num_outputs, 1)
    rules = rules_of(experiment, shapes_of(experiment))
    trained = {name for name, rule in rules.items() if not rule.frozen}
    macs = family_of(model).weight_macs(model, num_outputs)
    products = forward_macs(model, num_outputs) - sum(macs.values())
    macs |= _of_adapters(experiment, macs)
    layers = _layers(experiment, rules)
    first = min(layers[name] for name in trained)
    backward = sum(count for name, count in macs.items() if layers[name] >= first)
    blocks = set(layers.values()) - {0, max(layers.values())}
    share = sum(layer >= first for layer in blocks) / max(1, len(blocks))
    own = sum(count for name, count in macs.items() if name in trained)
    return 2.0 * (sum(macs.values()) + products + backward + 2 * products * share + own)


def in_words(experiment: Experiment) -> str:
    """How the FLOPs are counted."""
    if has_frozen(experiment):
        return "without gradients of frozen weights, 2 per multiply-add"
    return "3 × forward, 2 per multiply-add"


def has_frozen(experiment: Experiment) -> bool:
    """Whether some weights are not trained."""
    return experiment.optim.lora is not None or any(override.freeze for override in experiment.optim.overrides)


def _of_adapters(experiment: Experiment, macs: dict[str, int]) -> dict[str, int]:
    adapters, found = adapters_in(experiment), {}
    for layer in () if adapters is None else adapters.layers:
        (rank, into), (out, _) = adapters.shapes[layer + A], adapters.shapes[layer + B]  # type: ignore[union-attr]
        rows = macs.get(f"{layer}.weight", 0) // (into * out)
        found |= {layer + A: rows * rank * into, layer + B: rows * rank * out}
    return found


def _layers(experiment: Experiment, names: Iterable[str]) -> dict[str, int]:
    """Parameter name → layer; 0 for all of a network whose layers have no order."""
    try:
        own = family_of(experiment.model).layer_ids(experiment.model, experiment.num_outputs)
    except ConfigError:
        own = {}
    return {name: own.get(name, own.get(weight_of(name), 0)) for name in names}
