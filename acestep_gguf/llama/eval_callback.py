"""llama.cpp's ``cb_eval``: what each matrix of weights is multiplied with, seen while it is computed."""

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import DecodeError, UnsupportedModelError
from acestep_gguf.llama.library import ggml_function, lib

Floats = npt.NDArray[np.float32]

F32: Final = 0  # enum ggml_type
OBJECT_BYTES: Final = 32  # struct ggml_object, which ggml_tensor_overhead counts too
PROBE_BYTES: Final = 2**16


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h; ``product_numbers`` checks that the library's is this one."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
        ("extra", c_void_p),
        ("padding", c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_init = ggml_function("ggml_init", c_void_p, _InitParams)
_free = ggml_function("ggml_free", None, c_void_p)
_new_tensor_2d = ggml_function("ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
_set_name = ggml_function("ggml_set_name", c_void_p, c_void_p, c_char_p)
_mul_mat = ggml_function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
_get_data = ggml_function("ggml_get_data", c_void_p, c_void_p)
_op_name = ggml_function("ggml_op_name", c_char_p, c_int)
_tensor_overhead = ggml_function("ggml_tensor_overhead", c_size_t)
_n_bytes = ggml_function("ggml_nbytes", c_size_t, c_void_p)
_is_host = ggml_function("ggml_backend_buffer_is_host", c_bool, c_void_p)
_tensor_get = ggml_function("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)


class ProductNumbers(NamedTuple):
    """The library's numbers of two operations (enum ggml_op): a product, and one with chosen experts."""

    mul_mat: int
    mul_mat_id: int


@cache
def product_numbers() -> ProductNumbers:
    """Let ggml make a small product and read it back: another version's struct is refused, not misread.

    Raises:
        DecodeError: this build of llama.cpp lays its tensors out in another way.
    """
    context = _init(_InitParams(PROBE_BYTES, None, False))
    try:
        weights, inputs = _new_tensor_2d(context, F32, 8, 5), _new_tensor_2d(context, F32, 8, 3)
        _set_name(weights, b"probe.weight")
        product = _Tensor.from_address(_mul_mat(context, weights, inputs))
        seen, named = _Tensor.from_address(inputs), _Tensor.from_address(weights)
        is_known = (
            _tensor_overhead() == OBJECT_BYTES + ctypes.sizeof(_Tensor)
            and product.src[:3] == [weights, inputs, None]
            and named.name == b"probe.weight"
            and (seen.type, seen.ne[:], seen.nb[:]) == (F32, [8, 3, 1, 1], [4, 32, 96, 96])
            and (seen.buffer, seen.data) == (None, _get_data(inputs))
            and (_op_name(product.op), _op_name(product.op + 1)) == (b"MUL_MAT", b"MUL_MAT_ID")
        )
        number = int(product.op)
    finally:
        _free(context)
    if not is_known:
        raise DecodeError(
            "this build of llama.cpp has other tensors: install the llama-cpp-python that is locked."
        )
    return ProductNumbers(number, number + 1)


class ProductWatch:
    """Sees the inputs of the matrix products of a ``Context``, whose calls raise the errors of this.

    Args:
        wants: asked before each product: name of its weights, and rows of its input.
        take: called with the name and the input, float32 [n_rows, n_in], which is gone when it returns.
    """

    def __init__(self, wants: Callable[[str, int], bool], take: Callable[[str, Floats], None]) -> None:
        self._wants = wants
        self._take = take
        self._numbers = product_numbers()
        self._error: BaseException | None = None
        # ctypes does not keep the callback alive, this attribute does.
        self.callback = lib.ggml_backend_sched_eval_callback(self._look)

    def check(self) -> None:
        """Raise what was raised while llama.cpp computed: no exception passes through C."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _look(self, address: int, is_question: bool, _: Any) -> bool:
        """Whether the result is wanted (a question), or whether to go on."""
        if self._error is not None:
            return False
        try:
            node = _Tensor.from_address(address)
            return self._is_wanted(node) if is_question else self._is_taken(node)
        except BaseException as error:  # noqa: BLE001 (raised by check; KeyboardInterrupt, too)
            self._error = error
            return False

    def _is_wanted(self, node: _Tensor) -> bool:
        if node.op not in self._numbers:
            return False
        name, inputs = _weights_name(node), _Tensor.from_address(node.src[1])
        n_rows = inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
        if inputs.type != F32 or not self._wants(name, n_rows):
            return False
        weights = _Tensor.from_address(node.src[0])
        if node.op == self._numbers.mul_mat_id or weights.ne[2] * weights.ne[3] > 1:
            raise UnsupportedModelError(
                f"{name} has a matrix for each expert: inputs of experts are not collected."
            )
        return True

    def _is_taken(self, node: _Tensor) -> bool:
        name, rows = _weights_name(node), _rows(node.src[1])
        if not np.isfinite(rows).all():
            raise DecodeError(f"the input of {name} is not finite: weights or embeds are damaged.")
        self._take(name, rows)
        return True


def _weights_name(product: _Tensor) -> str:
    """Name of the weights; of a copy on another device, which is "CUDA0#NAME#0", that of the original."""
    name: str = _Tensor.from_address(product.src[0]).name.decode(errors="replace")
    return name.split("#")[1] if "#" in name else name


def _rows(address: int) -> Floats:
    """A tensor of float32 as rows, wherever it lies."""
    tensor = _Tensor.from_address(address)
    n_bytes = _n_bytes(address)
    if tensor.nb[0] != np.dtype(np.float32).itemsize:
        raise DecodeError("llama.cpp multiplies with rows that do not lie together.")
    data: Any
    if _is_host(tensor.buffer):
        data = (c_char * n_bytes).from_address(tensor.data)
    else:
        data = ctypes.create_string_buffer(n_bytes)
        _tensor_get(address, data, 0, n_bytes)
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    return np.ndarray(shape, np.float32, data, strides=strides).reshape(-1, tensor.ne[0])
