"""What each matrix is multiplied with, against the formulas of a decoder's first steps."""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import DecodeError, UnsupportedModelError
from acestep_gguf.llama import eval_callback
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.eval_callback import Floats, ProductWatch, product_numbers
from acestep_gguf.llama.library import ggml_function
from acestep_gguf.llama.params import ContextParams

TOKENS = [5, 9, 2, 40, 7, 7]
MATRICES = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}


def seen_by(weights: Model, compute: Callable[[Context], None]) -> dict[str, list[Floats]]:
    """Inputs of all products, by the names of the weights."""
    seen = defaultdict(list)
    watch = ProductWatch(lambda *_: True, lambda name, rows: seen[name].append(rows.copy()))
    with Context(weights, ContextParams(n_ctx=64, n_outputs_max=16), watch) as context:
        compute(context)
    return seen


def test_every_matrix_is_seen_once_a_call(weights: Model) -> None:
    seen = seen_by(weights, lambda context: context.decode_tokens(TOKENS, 0, n_outputs=len(TOKENS)))
    own = {name for name in seen if name.startswith("blk") or name == "output.weight"}
    assert own == {f"blk.{layer}.{name}.weight" for layer in range(2) for name in MATRICES} | {
        "output.weight"
    }
    for name in own:
        (rows,) = seen[name]
        assert rows.dtype == np.float32
        assert rows.shape == (len(TOKENS), 512 if "ffn_down" in name else 256)


def test_inputs_are_what_the_formulas_say(weights: Model, decoder_file: Path) -> None:
    """Of queries, the normed embeddings; of the output, what gives the logits."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(decoder_file).tensors}
    embeds = np.array(tensors["token_embd.weight"][TOKENS])
    logits: list[Floats] = []

    def compute(context: Context) -> None:
        context.decode_embeds(embeds, 0, n_outputs=len(TOKENS))
        logits.extend(context.logits(index) for index in range(-len(TOKENS), 0))

    seen = seen_by(weights, compute)
    normed = embeds / np.sqrt(np.mean(embeds**2, axis=1, keepdims=True) + 1e-6)
    expected = normed * tensors["blk.0.attn_norm.weight"]
    np.testing.assert_allclose(seen["blk.0.attn_q.weight"][0], expected, rtol=1e-4, atol=1e-6)
    found = seen["output.weight"][0] @ np.array(tensors["output.weight"]).T
    np.testing.assert_allclose(found, np.stack(logits), rtol=1e-3, atol=1e-4)


def test_the_last_layer_sees_only_rows_that_give_outputs(weights: Model) -> None:
    seen = seen_by(weights, lambda context: context.decode_tokens(TOKENS, 0, n_outputs=1))
    assert len(seen["blk.0.ffn_down.weight"][0]) == len(TOKENS)
    assert len(seen["blk.1.ffn_down.weight"][0]) == 1


def test_who_wants_nothing_changes_nothing(weights: Model) -> None:
    taken: list[str] = []
    params = ContextParams(n_ctx=64)
    watch = ProductWatch(lambda *_: False, lambda name, _: taken.append(name))
    with Context(weights, params, watch) as watched, Context(weights, params) as plain:
        for context in (watched, plain):
            context.decode_tokens(TOKENS, 0, n_outputs=1)
        np.testing.assert_array_equal(watched.logits(), plain.logits())
    assert not taken


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["wants", "take"])
def test_no_exception_is_lost(weights: Model, error: type[BaseException], where: str) -> None:
    def fail(*_: object) -> Any:
        raise error

    watch = ProductWatch(fail if where == "wants" else lambda *_: True, fail)
    with Context(weights, ContextParams(n_ctx=64), watch) as context, pytest.raises(error):
        context.decode_tokens(TOKENS, 0, n_outputs=1)


def test_what_is_not_finite_is_refused_by_name(decoder_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(decoder_file.read_bytes())
    (norm,) = (one for one in read_gguf_header(damaged).tensors if one.name == "blk.1.ffn_norm.weight")
    with damaged.open("r+b") as file:
        file.seek(norm.offset)
        file.write(np.float32("nan").tobytes())
    watch = ProductWatch(lambda *_: True, lambda *_: None)
    with (
        Model(damaged) as model,
        Context(model, ContextParams(n_ctx=64), watch) as context,
        pytest.raises(DecodeError, match=r"the input of blk\.1\.ffn_(gate|up)\.weight is not finite"),
    ):
        context.decode_tokens(TOKENS, 0, n_outputs=1)


def test_matrices_of_experts_are_refused_by_name() -> None:
    """On a product that ggml itself makes."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    new_3d = ggml_function("ggml_new_tensor_3d", pointer, pointer, ctypes.c_int, number, number, number)
    mul_mat_id = ggml_function("ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    context = eval_callback._init(eval_callback._InitParams(2**16, None, False))
    try:
        experts, inputs = new_3d(context, 0, 8, 5, 3), new_3d(context, 0, 8, 2, 4)
        eval_callback._set_name(experts, b"CUDA0#blk.3.ffn_up_exps.weight#0")
        chosen = eval_callback._new_tensor_2d(context, 26, 2, 4)  # GGML_TYPE_I32
        product = mul_mat_id(context, experts, inputs, chosen)
        watch = ProductWatch(lambda name, _: name.startswith("blk."), lambda *_: None)
        assert not watch._look(product, True, None)
        with pytest.raises(UnsupportedModelError, match=r"blk\.3\.ffn_up_exps\.weight has a matrix for each"):
            watch.check()
    finally:
        eval_callback._free(context)


class _Shorter(ctypes.Structure):
    """Without ``view_offs``, as a build of another version might have it."""

    _fields_ = [field for field in eval_callback._Tensor._fields_ if field[0] != "view_offs"]


def test_another_struct_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_callback, "_Tensor", _Shorter)
    product_numbers.cache_clear()
    try:
        with pytest.raises(DecodeError, match="has other tensors"):
            product_numbers()
    finally:
        monkeypatch.undo()
        product_numbers.cache_clear()
    assert product_numbers().mul_mat_id == product_numbers().mul_mat + 1
