"""The nursery of pool.py: imports the heavy libraries once, then forks ranks that wait for functions."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import pickle
import signal
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from types import ModuleType
from typing import Any


def serve() -> None:
    """Reads one order a line from stdin; when stdin ends, every rank is killed."""
    sys.path[:] = [path for path in sys.path if os.path.basename(path) != "tests"]
    _import_heavy()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead ranks are reaped by the kernel
    ranks: list[int] = []
    for line in sys.stdin:
        order = json.loads(line)
        for rank in range(order["size"]):
            process_id = os.fork()
            if process_id == 0:
                _run_rank(rank, order)
            ranks.append(process_id)
    for process_id in ranks:
        try:
            os.kill(process_id, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _import_heavy() -> None:
    import deepspeed
    import torch
    import torch.utils.data

    torch.set_num_threads(1)
    # On the CPU DeepSpeed would compile a shared-memory collective for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]


def _run_rank(rank: int, order: dict[str, Any]) -> None:
    status = 1
    try:
        _redirect_output(f"{order['prefix']}.rank{rank}")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection = Client(order["address"], "AF_UNIX")
        _join_group(rank, order)
        connection.send_bytes(pickle.dumps((rank, os.getpid())))
        _answer(connection)
        status = 0
    except (EOFError, ConnectionResetError):
        status = 0  # the pool was closed
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _redirect_output(prefix: str) -> None:
    log = os.open(f"{prefix}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    stacks = open(f"{prefix}.stacks", "w")  # stays open for the handler
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)


def _join_group(rank: int, order: dict[str, Any]) -> None:
    import deepspeed
    import torch.distributed as dist

    size = str(order["size"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{order['prefix']}.store",
        rank=rank,
        world_size=order["size"],
        timeout=timedelta(seconds=120),
    )
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def _answer(connection: Connection) -> None:
    import torch

    environment, folder = dict(os.environ), os.getcwd()
    while True:
        order, arguments = pickle.loads(connection.recv_bytes())
        module, path, name, env = order
        torch.manual_seed(0)
        os.environ.update(env)
        try:
            function: Any = _import_module(module, path)
            for part in name.split("."):
                function = getattr(function, part)
            answer = pickle.dumps(("returned", function(*pickle.loads(arguments))))
        except BaseException as error:  # a case may also leave by SystemExit
            answer = pickle.dumps(("failed", type(error).__name__, traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        connection.send_bytes(answer)
        gc.collect()


def _import_module(name: str, path: str | None) -> ModuleType:
    """The module under the name that the sender knows it by, so that pickles of its classes fit on both sides."""
    if name in sys.modules:
        return sys.modules[name]
    if path is None or name.startswith(("pretrain.", "pipelines.")):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


if __name__ == "__main__":
    serve()
