"""A simulated GPU: its tensors report `cuda:0`, compute on the CPU, and raise the errors of a real GPU.

So tests run the GPU code paths without a GPU: an operation on tensors of two devices fails, CUDA's autocast chooses the
types, random numbers have their own stream, and each wait for the device is recorded with the lines that caused it. Not
simulated: times, memory, cuDNN, and the GPU's own rounding and errors.
"""

import contextlib
import copy
import ctypes
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, enable_reentrant_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
PROJECT, COPIES = Path(__file__).parents[2], {aten._to_copy, aten.copy_}
CTC_CHOICES = {aten._use_cudnn_ctc_loss, aten._use_miopen_ctc_loss}
TAKE_CPU_LENGTHS = {aten._pack_padded_sequence, aten._pad_packed_sequence, aten._ctc_loss, *CTC_CHOICES}
"""Operations that accept step counts on the CPU."""
FILLS = {aten.fill_, aten.masked_fill, aten.masked_fill_, aten.index_put, aten.index_put_}
TAKE_CPU_SCALARS = {aten.where, *FILLS}
"""In addition to all element-wise operations: they accept a CPU tensor without axes as a number."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2}
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot}


class PretendTensor(torch.Tensor):
    """A tensor on the simulated GPU. `held` is its CPU tensor, which also keeps the gradient."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=CUDA
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise AssertionError(f"{func} outside of the simulated GPU")

    requires_grad = property(lambda self: self.held.requires_grad)
    grad_fn = property(lambda self: self.held.grad_fn)

    def requires_grad_(self, requires_grad: bool = True) -> "PretendTensor":
        self.held.requires_grad_(requires_grad)
        return self

    def backward(self, *arguments: Any, **named: Any) -> None:
        self.held.backward(*arguments, **named)

    @property
    def grad(self) -> "PretendTensor | None":
        return None if self.held.grad is None else PretendTensor(self.held.grad)

    @grad.setter
    def grad(self, grad: "PretendTensor | None") -> None:
        self.held.grad = None if grad is None else grad.held

    @property
    def data(self) -> "PretendTensor":
        return PretendTensor(self.held.data)

    @data.setter
    def data(self, data: "PretendTensor") -> None:
        self.held.data = data.held

    def tolist(self) -> Any:
        _record_wait("tolist")
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        if id(self) not in memo:
            copied = PretendTensor(copy.deepcopy(self.held, memo))
            copied._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"on the simulated GPU: {self.held}"


class PretendGpu(TorchDispatchMode):
    """The device and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        """How often the CPU waited for the device, by operation and lines of this project (the caller last)."""
        self.random_state = torch.Generator().manual_seed(0).get_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `func` on the device of its tensors. Raises RuntimeError if a GPU would."""
        named, packet = dict(kwargs or {}), func.overloadpacket
        tensors = list(_tensors((*args, *named.values())))
        there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        device = named.get("device")
        if not there and (device is None or device.type != "cuda"):
            return func(*args, **named)
        lands_there = device.type == "cuda" if device is not None else bool(there)
        if packet is aten.copy_:
            lands_there = isinstance(args[0], PretendTensor)
        self._refuse_mixed(func, args, tensors)
        self._record(func, args, named, lands_there)
        known = {id(tensor.held): tensor for tensor in there}
        held_args = [_mapped(_held, value) for value in args]
        held_named = {name: _mapped(_held, value) for name, value in named.items()}
        with contextlib.ExitStack() as stack:
            if torch.is_grad_enabled():
                # autograd has already run for the wrappers; it must run for the held tensors, which have the gradients
                stack.enter_context(enable_reentrant_dispatch())
                stack.enter_context(self)
            if torch.Tag.nondeterministic_seeded in func.tags:
                stack.enter_context(self._own_random_numbers())
            given = _KERNELS.get(packet, func)(*held_args, **held_named)
        if not lands_there:
            return known.get(id(given), given)

        def sent(value: Any) -> Any:
            is_new = isinstance(value, torch.Tensor) and id(value) not in known
            return PretendTensor(value) if is_new else known.get(id(value), value)

        if packet is aten._pack_padded_sequence:
            return sent(given[0]), given[1]  # the batch sizes of the steps stay on the CPU
        return _mapped(sent, given)

    def _refuse_mixed(self, func: Any, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> None:
        packet = func.overloadpacket
        here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        if len(here) == len(tensors):
            return
        if packet in PRODUCTS and not tensors[0].is_floating_point():
            raise RuntimeError(f'"{func}" not implemented for {tensors[0].dtype} on a GPU')
        if packet in COPIES or packet in TAKE_CPU_LENGTHS:
            return
        if packet in INDEXING and isinstance(args[0], PretendTensor):
            indices = [index for index in args[1] if index is not None]
            here = [tensor for tensor in here if not any(tensor is index for index in indices)]
        if torch.Tag.pointwise in func.tags or packet in TAKE_CPU_SCALARS:
            here = [tensor for tensor in here if tensor.dim()]
        if here:
            places = ", ".join(f"{tensor.device}{list(tensor.shape)}" for tensor in tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}({places})")

    def _record(self, func: Any, args: Sequence[Any], named: Mapping[str, Any], lands_there: bool) -> None:
        packet = func.overloadpacket
        if packet in COPIES:
            source = args[1] if packet is aten.copy_ else args[0]
            if isinstance(source, PretendTensor) == lands_there:
                return
            no_wait = named.get("non_blocking") or (packet is aten.copy_ and args[2:] == (True,))
            if not lands_there and no_wait:
                raise RuntimeError("read from the GPU without waiting: the values may not be there yet")
            if not no_wait:
                _record_wait("to the GPU" if lands_there else "from the GPU")
        elif packet in WAITS or (func is aten.repeat_interleave.Tensor and named.get("output_size") is None):
            _record_wait(packet.__name__)
        elif packet in INDEXING and any(
            index is not None and (index.dtype == torch.bool or not isinstance(index, PretendTensor))
            for index in args[1]
        ):
            _record_wait("indexing by a mask or from the CPU")

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        of_cpu = torch.get_rng_state()
        torch.set_rng_state(self.random_state)
        try:
            yield
        finally:
            self.random_state = torch.get_rng_state()
            torch.set_rng_state(of_cpu)


_ON: list[PretendGpu] = []


def _record_wait(what: str) -> None:
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 3:
        if file := _product_file(frame.f_code.co_filename):
            lines.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    for gpu in _ON:
        gpu.waits[f"{what} in {' < '.join(lines)}"] += 1


@functools.cache
def _product_file(name: str) -> str | None:
    """Returns the path from the project's root, if the file belongs to a package that uses the GPU."""
    file = Path(name)
    if file.is_relative_to(PROJECT) and file.parts[len(PROJECT.parts)] in ("model", "shards", "pipeline"):
        return str(file.relative_to(PROJECT))
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yields the tensors in nested lists and tuples. Like `_mapped`, ten times as fast as torch's pytree."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)([_mapped(function, item) for item in value])
    return function(value)


def _held(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.held
    return CPU if isinstance(value, torch.device) else value


def _lstm_cell(
    of_input: torch.Tensor, of_hidden: torch.Tensor, cell: torch.Tensor, *biases: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """A kernel that only GPUs have. Hochreiter and Schmidhuber 1997, in the order of torch's gates."""
    gates = of_input + of_hidden + sum(bias for bias in biases if bias is not None)
    enter, forget, new, leave = gates.chunk(4, dim=1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell, gates


_KERNELS: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_lstm_cell: _lstm_cell,
    aten._fused_sdp_choice: lambda *_, **__: 0,
    **dict.fromkeys(CTC_CHOICES, lambda *_: False),
}


class _Named(TorchFunctionMode):
    """Replaces operations that torch runs before dispatching by device, and that need CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(_numbered(value) for value in args)
        named = {name: _numbered(value) for name, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.asarray) and named.get("device") == CUDA:
            if isinstance(args[0], PretendTensor):
                return args[0].to(dtype=named.get("dtype"), copy=bool(named.get("copy")))
            return func(*args, **{**named, "device": CPU}).to(CUDA)
        indexes = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        if indexes and isinstance(args[0], PretendTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            sent = tuple(torch.tensor(item).to(CUDA) if isinstance(item, list) else item for item in index)
            args = (args[0], sent, *args[2:])
        return func(*args, **named)


def _numbered(value: Any) -> Any:
    return CUDA if isinstance(value, str | torch.device) and str(value) == "cuda" else value


@contextlib.contextmanager
def _guarded_as_a_cpu() -> Iterator[None]:
    """Registers the CPU's device guard for CUDA: indexing needs a guard.

    A torch without CUDA has none, and the guard of a torch with CUDA needs a driver.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    of_cuda = guards[1]
    guards[1] = guards[0]
    try:
        yield
    finally:
        guards[1] = of_cuda


@contextlib.contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    """Simulates a process with one GPU, an A100."""
    gpu = PretendGpu()

    def set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
        gpu.random_state = new_state.clone()

    def manual_seed_all(seed: int) -> None:
        gpu.random_state = torch.Generator().manual_seed(seed).get_state()

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "NVIDIA A100-SXM4-80GB",
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device="cuda": gpu.random_state.clone(),
        "set_rng_state": set_rng_state,
        "manual_seed_all": manual_seed_all,
        "max_memory_allocated": lambda device=None: 1 << 30,
        "empty_cache": lambda: None,
        "_lazy_init": lambda: None,
        "device": lambda device: contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        theirs = inspect.signature(getattr(torch.cuda, name)).parameters
        assert list(inspect.signature(answer).parameters) == list(theirs), f"torch.cuda.{name}{tuple(theirs)}"
        monkeypatch.setattr(torch.cuda, name, answer)
    # for all threads
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **named: empty(*args, **named))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(
        torch, "set_float32_matmul_precision", lambda precision: None
    )  # it would affect the CPU
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    _ON.append(gpu)
    try:
        # a torch with CUDA would choose cuDNN's kernels
        with torch.backends.cudnn.flags(enabled=False), _guarded_as_a_cpu(), gpu, _Named():
            yield gpu
    finally:
        _ON.remove(gpu)
