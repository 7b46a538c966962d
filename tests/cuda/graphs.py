"""The graphs of a complete compiled job in each layout: it trains, is stopped, saves, resumes and evaluates.

Dynamo makes the same graphs for any device, so these jobs run on the CPU, and nothing is generated from the graphs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.config import combinations
from pretrain.models.vit import VisionTransformer
from tests.cuda.jobs import one_job
from tests.cuda.layouts import CASES as LAYOUTS
from tests.cuda.layouts import Layout
from tests.cuda.record import Record, recording

WORLD = 1
OF_ONE_RANK = {"global_batch_size": 4, "cluster__compile": True}


def _compiles(layout: Layout) -> bool:
    return layout.accumulation == 1 and not combinations.refusals(
        sharding=layout.sharding.name,
        precision=layout.precision,
        compile=True,
        activation_checkpointing="none",
    )


CASES = {name: {**one.settings, **OF_ONE_RANK} for name, one in LAYOUTS.items() if _compiles(one)}


def record_of(settings: dict[str, Any], device: torch.device) -> Record:
    """A record with the number of graphs, over both starts of the job."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision for good
    torch._dynamo.reset()
    counter: Any = CompileCounterWithBackend("eager")
    compile_blocks = VisionTransformer.compile_blocks
    with (
        mock.patch.dict("os.environ", TORCHDYNAMO_DISABLE="0"),  # the environment of tests switches it off
        mock.patch.object(VisionTransformer, "compile_blocks", lambda model: compile_blocks(model, backend=counter)),
        tempfile.TemporaryDirectory() as folder,
        recording() as record,
    ):
        one_job({key: value for key, value in settings.items() if key != "duration"}, device, Path(folder))
    record.graphs = counter.frame_count
    return record
