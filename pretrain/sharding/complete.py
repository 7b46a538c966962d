"""The parameters that one rank updates for all, in numbers (see ``pretrain.optim.owned``). Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.protocol import Shapes
from pretrain.models.families.registry import family_of
from pretrain.optim.factored import num_kept, views_of
from pretrain.optim.groups import Rule
from pretrain.optim.matrices import matrices_of
from pretrain.optim.owners import owners_of


@dataclass(frozen=True)
class Complete:
    """A parameter that one rank updates for all, because its update reads the complete tensor.

    Attributes:
        name: the parameter's.
        size: its elements.
        kept: fp32 values of the optimiser's state.
        flops: of the matrix products in every update.
        refresh: FLOPs of what is computed only in some updates (``OptimConfig.refresh_flops``).
        cost: work of an update, in any unit: what ranks own is balanced by it.
        rows: size of its first dimension.
        temporaries: fp32 values allocated while its change is computed, the change included.
    """

    name: str
    size: int
    kept: float
    flops: float
    refresh: float
    cost: int
    rows: int
    temporaries: int


@dataclass(frozen=True)
class Owned:
    """The most that a rank owns.

    Attributes:
        size: elements.
        kept: fp32 values of the optimiser's state.
        flops: of the matrix products in every update.
        refresh: FLOPs of what is computed only in some updates.
        temporaries: the most fp32 values allocated while a change is computed.
    """

    size: int = 0
    kept: float = 0.0
    flops: float = 0.0
    refresh: float = 0.0
    temporaries: int = 0

    @classmethod
    def most(cls, groups: Sequence[Sequence[Complete]], num_devices: int) -> Owned:
        """The maxima over the ranks.

        Args:
            groups: the parameters; those of a group are updated at the same time.
            num_devices: number of ranks.
        """
        every = [each for group in groups for each in group]
        if not every:
            return cls()
        owners = owners_of([{each.name: each.cost for each in group} for group in groups], num_devices)
        ranks = [[each for each in every if owners[each.name] == rank] for rank in range(num_devices)]
        return cls(
            size=max(sum(each.size for each in own) for own in ranks),
            kept=max(sum(each.kept for each in own) for own in ranks),
            flops=max(sum(each.flops for each in own) for own in ranks),
            refresh=max(sum(each.refresh for each in own) for own in ranks),
            temporaries=max(each.temporaries for each in every),
        )


def complete_of(experiment: Experiment, shapes: Shapes, rules: Mapping[str, Rule]) -> dict[str, Complete]:
    """Name → each trained parameter that is updated as a complete tensor.

    Args:
        experiment: the settings.
        shapes: parameter name → shape.
        rules: parameter name → how it is trained.
    """
    optim = experiment.optim
    wanted = {name: shape for name, shape in shapes.items() if rules[name].complete and not rules[name].frozen}
    if not wanted:
        return {}
    heads = family_of(experiment.model).attention_heads(experiment.model, experiment.num_outputs)
    views, matrices = views_of(wanted, heads), matrices_of(wanted, heads)
    found = {}
    for name, shape in wanted.items():
        size = math.prod(shape)
        count, *matrix = matrices.get(name, (1, size, 1))
        kept = optim.own_complete_states * size + count * optim.own_matrix_states(*matrix)
        found[name] = Complete(
            name=name,
            size=size,
            kept=kept + (num_kept(views[name]) if optim.factors_second_moment else 0),
            flops=count * optim.complete_flops(*matrix),
            refresh=count * optim.refresh_flops(*matrix),
            cost=count * optim.complete_cost(*matrix),
            rows=shape[0] if shape else 1,
            temporaries=max(optim.num_temporaries * size, optim.refresh_temporaries(*matrix)),
        )
    return found
