"""A device that is not there: numbers of the CPU under the rules of a GPU, so that tests see them broken."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

#: Where tensors on it say that they are: torch's own device on which nothing computes, by another number.
DEVICE = torch.device("meta", 1)

#: Operations in which tensors of two devices may meet: they are there to bring numbers from one to the other.
_ACROSS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}

#: What makes a program wait for a GPU: a value that Python asks for, and shapes that depend on values.
WAITS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "nonzero",
    torch.ops.aten.equal.default: "item",
    torch.ops.aten._linalg_check_errors.default: "check",
    torch.ops.aten._unique2.default: "nonzero",
    torch.ops.aten.unique_dim.default: "nonzero",
}


class OnDevice(Tensor):
    """A tensor on the device; its numbers are those of one of the CPU."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, own.shape, own.stride(), own.storage_offset(), dtype=own.dtype, device=DEVICE
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        raise AssertionError(f"{func} on the device outside `emulated`")

    def tolist(self) -> Any:
        """Torch's own takes no subclass."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.own!r})"


class Emulated(TorchDispatchMode):
    """Computes with tensors on the device, refuses to mix them with the CPU's, and counts what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        leaves, layout = tree_flatten((args, kwargs or {}))
        there = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        asked = (kwargs or {}).get("device")
        if there and func not in _ACROSS:
            # as CUDA has it, one number of the CPU goes along as an argument of the kernel
            here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.ndim]
            if here:
                shapes = [tuple(x.shape) for x in here]
                raise AssertionError(f"{func} mixes tensors on the device with {shapes} of the CPU")
        if there and func in WAITS:
            self.waits[WAITS[func]] += 1
        if func is torch.ops.aten.index.Tensor and any(x.dtype == torch.bool for x in there[1:]):
            self.waits["nonzero"] += 1
        if func in _ACROSS and self._crosses(func, args, there, asked):
            self.waits["copy"] += 1
        made_there = DEVICE == torch.device(asked) if asked is not None else bool(there)
        if func is torch.ops.aten.copy_.default:
            made_there = isinstance(args[0], OnDevice)
        own = [self._own(leaf) for leaf in leaves]
        plain_args, plain_kwargs = tree_unflatten(own, layout)
        answer = func(*plain_args, **plain_kwargs)
        if not made_there:
            return answer
        # what is changed in place, or written to, stays the tensor that it was
        known = {id(leaf.own): leaf for leaf in there}

        def put(x: Any) -> Any:
            # nobody outside could see that a tensor is a conjugate that is still to be worked out
            return known[id(x)] if id(x) in known else OnDevice(x.resolve_conj().resolve_neg())

        return tree_map(lambda x: put(x) if isinstance(x, Tensor) else x, answer)

    @staticmethod
    def _own(leaf: Any) -> Any:
        if isinstance(leaf, OnDevice):
            return leaf.own
        return torch.device("cpu") if isinstance(leaf, torch.device) and leaf == DEVICE else leaf

    @staticmethod
    def _crosses(func, args: tuple, there: list[OnDevice], asked: torch.device | None) -> bool:
        """Whether numbers go from one device to the other."""
        if func is torch.ops.aten.copy_.default:
            sides = [isinstance(side, OnDevice) for side in args[:2]]
            return sides[0] != sides[1] and (sides[1] or args[1].ndim > 0)
        return asked is not None and bool(there) != (torch.device(asked) == DEVICE)


class _Numbers(TorchFunctionMode):
    """Numbers of Python become a tensor here and are sent: torch would send them before a mode can see it."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        if func is Tensor.new_tensor:
            device = args[0].device if device is None else device
            func, kwargs["dtype"], args = torch.tensor, kwargs.get("dtype") or args[0].dtype, args[1:]
        device = torch.device("cpu" if device is None else device)
        return func(*args, **kwargs, **({} if device == DEVICE else {"device": device})).to(device)


@contextmanager
def emulated() -> Iterator[Emulated]:
    """Within it `.to(DEVICE)` works like `.to("cuda")`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Numbers(), Emulated() as device:
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
