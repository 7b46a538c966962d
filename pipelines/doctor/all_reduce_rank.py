"""One rank of the doctor's all-reduce; torchrun starts as many as there are devices. Rank 0 prints JSON."""

from __future__ import annotations

import json
import os

import torch
import torch.distributed as dist

from pipelines.doctor.compute import all_reduce_gb_per_s


def main() -> None:
    """Measures and prints. Collective: all ranks."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rate = all_reduce_gb_per_s(device)
    if dist.get_rank() == 0:
        print(json.dumps({"gb_per_s": rate, "ranks": dist.get_world_size()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
