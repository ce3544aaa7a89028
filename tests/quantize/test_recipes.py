"""The rules by themselves; test_one_pass.py compares whole files with llama.cpp's."""

import pytest
from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.names import FTYPES, Ftype
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice, choose_types


def decoder(n_layers: int, n_embd: int = 256, n_ff: int = 512, *, tied: bool = False) -> list[TensorShape]:
    tensors = [TensorShape("token_embd.weight", (1000, n_embd))]
    for bid in range(n_layers):
        tensors += [
            TensorShape(f"blk.{bid}.attn_norm.weight", (n_embd,)),
            TensorShape(f"blk.{bid}.attn_q.weight", (n_embd, n_embd)),
            TensorShape(f"blk.{bid}.attn_q.bias", (n_embd,)),
            TensorShape(f"blk.{bid}.attn_v.weight", (128, n_embd)),
            TensorShape(f"blk.{bid}.ffn_down.weight", (n_embd, n_ff)),
        ]
    return tensors if tied else [*tensors, TensorShape("output.weight", (1000, n_embd))]


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [
        (1, [0]),  # 1 // 8 = 0 layers before, and all from 7 // 8 = 0 on
        (2, [1]),
        (4, [2, 3]),
        (16, [0, 1, 4, 7, 10, 13, 14, 15]),
        (24, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]),
    ],
)
@pytest.mark.parametrize("tensor", ["attn_v", "ffn_down"])
def test_layers_that_get_more_bits(n_layers: int, layers: list[int], tensor: str) -> None:
    for ftype, base in (("Q4_K_M", QType.Q4_K), ("Q5_K_M", QType.Q5_K)):
        choices = choose_types(ftype, decoder(n_layers))  # type: ignore[arg-type]
        types = [choices[f"blk.{bid}.{tensor}.weight"].qtype for bid in range(n_layers)]
        assert [bid for bid, qtype in enumerate(types) if qtype == QType.Q6_K] == layers
        assert set(types) <= {base, QType.Q6_K}


def test_attn_v_of_80_layers_gets_five_bits_at_least() -> None:
    choices = choose_types("Q4_K_M", decoder(80))
    assert {choices[f"blk.{bid}.attn_v.weight"].qtype for bid in range(80)} == {QType.Q5_K, QType.Q6_K}
    assert choices["blk.10.ffn_down.weight"].qtype == QType.Q4_K


@pytest.mark.parametrize(
    ("arch", "n_kv", "is_70b"),
    [("llama", 128, True), ("llama", 256, False), ("qwen2", 256, True), ("qwen3", 128, False)],
)
def test_a_llama_of_80_layers_is_a_70b_only_if_heads_share_values(arch: str, n_kv: int, is_70b: bool) -> None:
    tensors = [*decoder(80), TensorShape("blk.0.attn_k.weight", (n_kv, 256))]
    choices = choose_types("Q4_K_M", tensors, arch=arch)
    assert choices["blk.10.attn_v.weight"].qtype == (QType.Q5_K if is_70b else QType.Q4_K)


@pytest.mark.parametrize(
    ("ftype", "output"), [("Q4_K_M", QType.Q6_K), ("Q5_K_M", QType.Q6_K), ("Q8_0", QType.Q8_0)]
)
def test_output_and_tied_embeddings_get_six_bits(ftype: Ftype, output: QType) -> None:
    untied, tied = choose_types(ftype, decoder(2)), choose_types(ftype, decoder(2, tied=True))
    assert untied["output.weight"].qtype == tied["token_embd.weight"].qtype == output
    assert untied["token_embd.weight"].qtype == untied["blk.0.attn_q.weight"].qtype


@pytest.mark.parametrize("ftype", FTYPES)
def test_norms_and_biases_stay_float32(ftype: Ftype) -> None:
    choices = choose_types(ftype, decoder(2))
    assert (
        choices["blk.0.attn_norm.weight"] == choices["blk.1.attn_q.bias"] == TypeChoice(QType.F32, QType.F32)
    )


@pytest.mark.parametrize(
    ("ftype", "n_embd", "expected"),
    [
        ("Q4_K_M", 288, QType.Q5_0),
        ("Q5_K_M", 288, QType.Q5_1),
        ("Q8_0", 288, QType.Q8_0),
        ("Q4_K_M", 264, QType.F16),
        ("Q8_0", 264, QType.F16),
        ("F16", 264, QType.F16),
        ("F32", 264, QType.F32),
    ],
)
def test_rows_that_do_not_fit_fall_back_and_it_shows(ftype: Ftype, n_embd: int, expected: QType) -> None:
    choice = choose_types(ftype, decoder(2, n_embd))["blk.0.attn_q.weight"]
    assert choice.qtype == expected
    assert choice.is_fallback == (ftype in ("Q4_K_M", "Q5_K_M") or (ftype == "Q8_0" and n_embd == 264))


def test_six_bits_fall_back_to_eight() -> None:
    choices = choose_types("Q4_K_M", decoder(2, n_ff=352))
    assert choices["blk.1.ffn_down.weight"] == TypeChoice(QType.Q8_0, QType.Q6_K)
    assert choose_types("Q5_K_M", decoder(2, 288))["output.weight"].qtype == QType.Q8_0
