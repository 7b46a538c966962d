"""``torch.cuda`` as eight H100s would answer, without a driver: devices, streams, events and memory."""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.cuda.record import waited

NAME = "NVIDIA H100 80GB HBM3"
NUM_DEVICES = 8
_PRIMARY_CONTEXT = 4  # slot of CUDAHooksInterface::hasPrimaryContext, after two destructors, isBuilt and isAvailable
_NUM_SLOTS = 64
_kept: list[Any] = []  # the table that torch's object points to must outlive it


def forget_the_context() -> None:
    """Lets autograd run a backward pass on CUDA tensors without a driver.

    A CUDA build asks ``CUDAHooks::hasPrimaryContext(0)`` at the start of each backward pass, which raises where there
    is no driver. This process gets a copy of the object's table of virtual functions with an answer of false.
    """
    if _kept:
        return
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libtorch_cpu.so")
    get_hooks = library._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    hooks = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    header = 2  # pointers in front of the first function: offset to top, type information
    before = ctypes.cast(hooks[0] - header * ctypes.sizeof(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p))
    table = (ctypes.c_void_p * (_NUM_SLOTS + header))(*(before[index] for index in range(_NUM_SLOTS + header)))
    no = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda self, index: False)
    table[header + _PRIMARY_CONTEXT] = ctypes.cast(no, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(table) + header * ctypes.sizeof(ctypes.c_void_p)
    _kept.extend((table, no))


class Event:
    """A CUDA event that has always completed."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def record(self, *args: object) -> None: ...

    def wait(self, *args: object) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        waited("event.synchronize")

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Stream:
    """A CUDA stream; streams wait for each other on the device, which costs the host nothing."""

    def __init__(self, *args: object, **options: object) -> None:
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        waited("stream.synchronize")

    def query(self) -> bool:
        return True


def _typed(dtype: torch.dtype) -> Any:
    """``torch.cuda.FloatTensor`` and its like: a tensor on the device from numbers on the host."""
    return lambda values: torch.tensor(values, dtype=dtype).to("cuda")


def answers() -> dict[str, Any]:
    """Name of a function or class in torch → its replacement."""
    properties = SimpleNamespace(
        total_memory=int(79.1 * 2**30), major=9, minor=0, name=NAME, multi_processor_count=132, uuid="GPU-0"
    )
    constant = {
        "is_available": True,
        "device_count": NUM_DEVICES,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "is_initialized": True,
        "memory_stats": {},
    }
    numbers = ("max_memory_allocated", "memory_allocated", "max_memory_reserved", "memory_reserved")
    nothing = ("set_device", "empty_cache", "reset_peak_memory_stats", "manual_seed_all", "set_rng_state", "_lazy_init")
    replies = {**constant, **dict.fromkeys(numbers, 0), **dict.fromkeys(nothing)}
    found: dict[str, Any] = {f"torch.cuda.{name}": _always(value) for name, value in replies.items()}
    found |= {
        "torch.cuda.synchronize": lambda *_: waited("cuda.synchronize"),
        "torch.cuda.Event": Event,
        "torch.cuda.Stream": Stream,
        "torch.cuda.stream": lambda stream: contextlib.nullcontext(),
        "torch.cuda.current_stream": lambda *_: Stream(),
        "torch.cuda.default_stream": lambda *_: Stream(),
        "torch.cuda.get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "torch.Tensor.record_stream": lambda tensor, stream: None,
    }
    types = {"FloatTensor": torch.float32, "ByteTensor": torch.uint8, "IntTensor": torch.int32}
    return found | {f"torch.cuda.{name}": _typed(dtype) for name, dtype in types.items()}


def _always(value: Any) -> Any:
    return lambda *args, **options: value


def install(stack: contextlib.ExitStack) -> None:
    """Replaces the functions for as long as ``stack`` is open."""
    forget_the_context()
    for name, value in answers().items():
        stack.enter_context(mock.patch(name, value))
