"""CUDA tensors.without values: torch's fake tensors on the device, real tensors on the host.

An operation that mixes devices or types raises as it would on a GPU. A value that the host reads is 0, unless it
follows from integers and booleans that came from the host: those are remembered, so that labels, ids and masks stay
right and a shape that depends on them is known. So are float64 numbers, which here are only counts and reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.cuda.record import waited

aten = torch.ops.aten
MOST_REMEMBERED = 1 << 16  # elements
PAGEABLE_BYTES = 1 << 16  # up to this size a copy from pageable memory is staged, and an asynchronous one returns
FLASH = 1  # torch's number of the flash attention kernel
# These return a shape that depends on values, so that the host waits for it.
VALUE_DEPENDENT = frozenset(
    {
        aten.nonzero.default,
        aten.masked_select.default,
        aten._unique2.default,
        aten.unique_dim.default,
        aten.unique_consecutive.default,
        aten.repeat_interleave.Tensor,
        aten.bincount.default,
        aten.equal.default,
    }
)

_pinned: set[int] = set()  # storages of the host's page-locked tensors
_kept: list[Tensor] = []  # a pinned tensor lives as long as the process, so that no other gets its address


def known(tensor: Any) -> Tensor | None:
    """The values of a tensor on the device, if they are remembered."""
    return getattr(tensor, "_known", None) if isinstance(tensor, FakeTensor) else None


def remember(tensor: Any, values: Tensor | None) -> None:
    """Sets the values of a tensor on the device; None: they are not known."""
    if isinstance(tensor, FakeTensor):
        kept = values is not None and values.numel() <= MOST_REMEMBERED and _is_exact(values.dtype)
        tensor._known = values if kept else None  # type: ignore[attr-defined]


def _is_exact(dtype: torch.dtype) -> bool:
    return dtype == torch.float64 or not dtype.is_floating_point


def pin(tensor: Tensor, *_: object) -> Tensor:
    """``Tensor.pin_memory``."""
    out = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    out.copy_(tensor)
    return _mark_pinned(out)


def _mark_pinned(tensor: Tensor) -> Tensor:
    _pinned.add(tensor.untyped_storage()._cdata)
    _kept.append(tensor)
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage()._cdata in _pinned


class Device(TorchDispatchMode):
    """Dispatches operations of the device to fake tensors, and everything else to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self._special: dict[Any, Callable[..., Any]] = {
            torch.ops.prim.device.default: lambda tensor: tensor.fake_device,
            aten._local_scalar_dense.default: self._item,
            aten._fused_sdp_choice.default: lambda *args, **options: FLASH,
            aten.is_pinned.default: lambda *args, **options: False,
            aten._fused_sgd_.default: lambda *args, **options: None,  # torch has no fake of it; it returns nothing
            aten._to_copy.default: self._moved,
            aten.copy_.default: self._copied,
            aten.index.Tensor: self._indexed,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(one, FakeTensor) or _is_cuda(one) for one in leaves):
            return _on_host(func, args, kwargs)
        if func in self._special:
            return self._special[func](*args, **kwargs)
        if func in VALUE_DEPENDENT:
            waited(f"shape of {func}")
        return self._computed(func, args, kwargs)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation on the device, with its values if those of all operands are known."""
        kwargs.pop("pin_memory", None)
        leaves = tree_leaves((args, kwargs))
        operands = [one for one in leaves if isinstance(one, FakeTensor)]
        values = None
        if operands and all(known(one) is not None for one in operands):
            values = func(*tree_map(_to_known, args), **tree_map(_to_known, kwargs))
        mutated = _mutated(func, args)
        if mutated is not None and values is None:
            remember(mutated, None)
        if mutated is None and func in VALUE_DEPENDENT and values is not None:
            return self._from_host(values) if isinstance(values, Tensor) else values
        if any(isinstance(one, Tensor) and not isinstance(one, FakeTensor) for one in leaves):
            args, kwargs = tree_map(self._faked, args), tree_map(self._faked, kwargs)
        with self.fake:
            out = func(*args, **kwargs)
        if mutated is None and values is not None:
            tree_map(remember, out, values)
        return out

    def _faked(self, one: Any) -> Any:
        """A tensor of the host that takes part in an operation of the device: torch raises unless it is a scalar."""
        if isinstance(one, Tensor) and not isinstance(one, FakeTensor):
            with self.fake:
                return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="cpu")
        return one

    def _empty_like(self, source: Tensor, device: Any, **options: Any) -> Any:
        shape, dtype = source.shape, options.get("dtype") or source.dtype
        memory_format = options.get("memory_format")
        with self.fake:
            if memory_format not in (None, torch.preserve_format):
                return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
            dense = source.is_contiguous() or _fills_its_storage(source)
            stride = source.stride() if dense else torch.empty(shape, device="meta").stride()
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    def _indexed(self, tensor: Tensor, indices: list[Tensor | None]) -> Any:
        """``tensor[mask]``, for which the host waits, or ``tensor[numbers]``."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool:
                found.append(index)
                continue
            waited("selection by a mask")
            mask = known(index)
            if mask is None:
                raise NotImplementedError("a mask whose values do not come from the host")
            found.extend(self._from_host(numbers) for numbers in mask.nonzero(as_tuple=True))
        return self._computed(aten.index.Tensor, (tensor, found), {})

    def _from_host(self, values: Tensor) -> Tensor:
        out = self._empty_like(values, torch.device("cuda", 0))
        remember(out, values)
        return out

    def _item(self, tensor: FakeTensor) -> Any:
        waited("item")
        values = known(tensor)
        return torch.zeros((), dtype=tensor.dtype).item() if values is None else values.item()

    def _moved(self, source: Tensor, **options: Any) -> Any:
        """``Tensor.to``: between devices, or of another type."""
        target = options.get("device")
        to_host = target is not None and torch.device(target).type == "cpu"
        if isinstance(source, FakeTensor):
            if not to_host or source.device.type == "cpu":
                return self._computed(aten._to_copy.default, (source,), options)
            waited("copy to the host")
            dtype, values = options.get("dtype") or source.dtype, known(source)
            return torch.zeros(source.shape, dtype=dtype) if values is None else values.to(dtype, copy=True)
        _sent(source, bool(options.get("non_blocking", False)))
        out = self._empty_like(source, target, **{key: options.get(key) for key in ("dtype", "memory_format")})
        remember(out, source.to(out.dtype, copy=True))
        return out

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """``Tensor.copy_``."""
        if isinstance(target, FakeTensor) and isinstance(source, FakeTensor):
            return self._computed(aten.copy_.default, (target, source), {})
        if isinstance(target, FakeTensor):
            _sent(source, non_blocking)
            remember(target, source.to(target.dtype, copy=True).expand(target.shape))
            return target
        if not (non_blocking and _is_pinned(target)):
            waited("copy to the host")
        values = known(source)
        return target.zero_() if values is None else target.copy_(values)


def _is_cuda(one: Any) -> bool:
    return isinstance(one, torch.device) and one.type == "cuda"


def _to_known(one: Any) -> Any:
    if _is_cuda(one):
        return torch.device("cpu")
    return known(one) if isinstance(one, FakeTensor) else one


def _mutated(func: Any, args: Any) -> Any:
    """The tensor that an operation writes to, if it is its first argument."""
    return args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None


def _fills_its_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _sent(source: Tensor, non_blocking: bool) -> None:
    """Records whether a copy to the device makes the host wait."""
    num_bytes, pinned = source.numel() * source.element_size(), _is_pinned(source)
    if num_bytes and (not non_blocking or (not pinned and num_bytes > PAGEABLE_BYTES)):
        waited("copy to the device")


def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation of the host, whose page-locked memory is only marked as such."""
    pins = kwargs.pop("pin_memory", None)
    if func is aten.is_pinned.default:
        return _is_pinned(args[0])
    if func is aten._pin_memory.default:
        return pin(args[0])
    out = func(*args, **kwargs)
    return _mark_pinned(out) if pins else out


def _tolist(tensor: FakeTensor) -> Any:
    waited("tolist")
    values = known(tensor)
    return (torch.zeros(tensor.shape, dtype=tensor.dtype) if values is None else values).tolist()


def _swap(one: Tensor, other: Tensor) -> None:
    """``Module.to`` swaps tensors of a subclass, which torch's caches of fake tensors forbid; the data is enough."""
    one.data = other.data if isinstance(other, nn.Parameter) else other


def install(stack: contextlib.ExitStack) -> None:
    """Makes ``device="cuda"`` mean fake tensors for as long as ``stack`` is open."""
    stack.enter_context(mock.patch("torch.utils.swap_tensors", _swap))
    stack.enter_context(mock.patch("torch.Tensor.pin_memory", pin))
    stack.enter_context(mock.patch("torch._subclasses.fake_tensor.FakeTensor.tolist", _tolist))
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
    stack.callback(torch._C._set_only_lift_cpu_tensors, False)  # type: ignore[attr-defined]
    stack.enter_context(Device())
    stack.enter_context(torch.autograd.set_multithreading_enabled(False))
