"""The parameters of an experiment in numbers: sizes, groups of the optimiser, units of sharding. Without torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pretrain.config.schema.experiment import Experiment
from pretrain.models.adapters import Adapters, adapters_of, is_adapter
from pretrain.models.families.protocol import Shapes
from pretrain.models.families.registry import family_of, parameter_shapes
from pretrain.optim.groups import Rule, assign_rules, grouped
from pretrain.sharding.complete import Complete, complete_of

OUTSIDE = -1  # the unit of parameters that are in no block


@dataclass(frozen=True)
class Weights:
    """Sizes of a model's parameters in elements.

    Attributes:
        sizes: size of every parameter, in the order of the model.
        trained: for each parameter, whether it is trained or frozen.
        groups: sizes of the trained parameters by parameter group of the optimiser.
        cast: for each parameter, whether autocast computes with a copy in bf16 (``Family.cast_names``).
        rows: for each parameter, the size of its first dimension.
        units: for each parameter, the number of its unit (``Family.units``), or OUTSIDE.
        names: of the parameters.
        complete: by parameter group, the parameters that are updated as complete tensors: all of a group or none.
    """

    sizes: tuple[int, ...]
    trained: tuple[bool, ...]
    groups: tuple[tuple[int, ...], ...]
    cast: tuple[bool, ...]
    rows: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    complete: tuple[tuple[Complete, ...], ...] = ()

    @classmethod
    def of(
        cls,
        shapes: Shapes,
        rules: Mapping[str, Rule],
        cast: Collection[str],
        units: Sequence[str],
        complete: Mapping[str, Complete],
    ) -> Weights:
        """Groups the parameters as ``pretrain.optim.groups.parameter_groups`` does.

        Args:
            shapes: parameter name → shape, in the order of the model.
            rules: parameter name → how it is trained.
            cast: names of the parameters with a copy in bf16 under autocast.
            units: names of the units.
            complete: name → a parameter that is updated as a complete tensor.
        """
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        groups = list(grouped({name: rules[name] for name in sizes}).values())
        return cls(
            sizes=tuple(sizes.values()),
            trained=tuple(not rules[name].frozen for name in sizes),
            groups=tuple(tuple(sizes[name] for name in names) for names in groups),
            complete=tuple(tuple(complete[name] for name in names if name in complete) for names in groups),
            cast=tuple(name in cast for name in sizes),
            rows=tuple(shape[0] if shape else 1 for shape in shapes.values()),
            units=tuple(_unit_of(name, units) for name in sizes),
            names=tuple(sizes),
        )

    @cached_property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes)

    @cached_property
    def num_trained(self) -> int:
        """Elements of the trained parameters."""
        return sum(map(sum, self.groups))

    @property
    def num_frozen(self) -> int:
        """Elements of the frozen parameters."""
        return self.num_parameters - self.num_trained

    def of_kind(self, *, trained: bool) -> list[int]:
        """Sizes of the trained parameters, or of the frozen ones."""
        return [size for size, is_trained in zip(self.sizes, self.trained, strict=True) if is_trained == trained]

    def updated(self, *, together: bool) -> tuple[tuple[Complete, ...], ...]:
        """``complete`` by the updates of a step; ``together``: there is one of all groups."""
        return (tuple(each for group in self.complete for each in group),) if together else self.complete

    @cached_property
    def elementwise(self) -> Weights:
        """The same parameters, where those that are updated as complete tensors count as frozen."""
        complete = {each.name for group in self.complete for each in group}
        if not complete:
            return self
        trained = (trained and name not in complete for name, trained in zip(self.names, self.trained, strict=True))
        groups = (sizes for sizes, owned in zip(self.groups, self.complete, strict=True) if not owned)
        return replace(self, trained=tuple(trained), groups=tuple(groups), complete=())


def weights_of(experiment: Experiment) -> Weights:
    """Sizes of the experiment's parameters by the groups that its optimiser updates them in.

    Raises:
        ConfigError: an override of the optimiser matches no parameter.
    """
    model, num_outputs = experiment.model, experiment.num_outputs
    shapes, family = shapes_of(experiment), family_of(model)
    cast = family.cast_names(model, num_outputs) | {name for name in shapes if is_adapter(name)}
    rules, units = rules_of(experiment, shapes), family.units(model, num_outputs)
    return Weights.of(shapes, rules, cast, units, complete_of(experiment, shapes, rules))


def num_state_values(experiment: Experiment) -> float:
    """fp32 values of the optimiser's state and the EMA of all parameters, on all ranks together."""
    weights, optim = weights_of(experiment), experiment.optim
    complete = sum(each.kept for group in weights.complete for each in group)
    average = weights.num_trained if optim.ema_decay is not None else 0
    return optim.own_states * weights.elementwise.num_trained + complete + average


def _unit_of(name: str, units: Sequence[str]) -> int:
    return next((number for number, unit in enumerate(units) if name.startswith(f"{unit}.")), OUTSIDE)


def adapters_in(experiment: Experiment) -> Adapters | None:
    """Its low-rank adapters; None: it has none."""
    lora = experiment.optim.lora
    return None if lora is None else adapters_of(experiment.model, experiment.num_outputs, lora)


def shapes_of(experiment: Experiment) -> Shapes:
    """Name → shape of every parameter, adapters included, in the order of the model."""
    adapters = adapters_in(experiment)
    return parameter_shapes(experiment.model, experiment.num_outputs) if adapters is None else adapters.shapes


def rules_of(experiment: Experiment, shapes: Shapes) -> dict[str, Rule]:
    """How each of its parameters is trained."""
    model, optim, adapters = experiment.model, experiment.optim, adapters_in(experiment)
    layer_ids = family_of(model).layer_ids(model, experiment.num_outputs) if optim.needs_layers else None
    if layer_ids is not None and adapters is not None:
        layer_ids = adapters.layer_ids(layer_ids)
    frozen = () if adapters is None else adapters.frozen
    return assign_rules({name: len(shape) for name, shape in shapes.items()}, optim, layer_ids, frozen)
