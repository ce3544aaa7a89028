"""llama-quantize's options; test_requantize.py compares the files they lead to with llama.cpp's."""

from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as QType
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.errors import UsageError
from acestep_gguf.quantize.ggml import block_size
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice, choose_types
from acestep_gguf.quantize.steering import (
    STEERABLE_TYPES,
    Steering,
    parse_steering,
    read_tensor_types,
)


def rule(text: str) -> Steering:
    return parse_steering([text])


def test_a_pattern_is_searched_for_anywhere_and_the_first_that_matches_counts() -> None:
    steering = parse_steering([r"blk\.(0|1)\.ffn=q6_K", "ffn_down=Q8_0", "^output=F16"])
    assert steering.type_of("blk.1.ffn_down.weight") == QType.Q6_K
    assert steering.type_of("blk.2.ffn_down.weight") == QType.Q8_0
    assert steering.type_of("output.weight") == QType.F16
    assert steering.type_of("blk.2.attn_output.weight") is None


def test_the_case_of_a_pattern_is_lowered_and_of_a_type_ignored_as_in_llama_quantize() -> None:
    assert rule("ATTN_V=iq4_xs").type_of("blk.0.attn_v.weight") == QType.IQ4_XS
    assert rule(r"\D=Q8_0").type_of("output.weight") is None  # \d


@pytest.mark.parametrize(
    "text",
    [
        "attn_v",
        "=Q8_0",
        "attn_v=",
        "attn_v=Q9_0",
        "attn_v=TQ1_0",
        "attn_v=Q8_K",  # for sums only
        "attn_v=I32",
        "(=Q8_0",
        "[z-a]=Q8_0",
        "*=Q8_0",
        "[[:alpha:]]=Q8_0",
        "[[a]=Q8_0",
        "[a||b]=Q8_0",
    ],
)
def test_what_cannot_be_followed_is_one_clear_error(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        rule(text)
    assert "\n" not in str(raised.value)


@given(st.text(st.sampled_from(r"ab01.*+?()[]{}|\^$-,:!<=PQ#"), max_size=40))
def test_any_pattern_is_taken_or_refused(pattern: str) -> None:
    with suppress(UsageError):
        rule(f"{pattern}=Q8_0")


def test_a_lookahead_has_an_equals_sign_too() -> None:
    steering = rule("attn_(?=v)=Q8_0")
    assert steering.type_of("blk.0.attn_v.weight") == QType.Q8_0
    assert steering.type_of("blk.0.attn_q.weight") is None


@pytest.mark.parametrize("pattern", ["attn_vv", "ffn_down$", "norm"])
def test_a_rule_for_no_tensor_is_refused(pattern: str) -> None:
    """A mistyped pattern would be ignored silently; norms stay as they are."""
    with pytest.raises(UsageError, match="is in the name of no tensor"):
        choose_types("Q4_K_M", decoder(2), parse_steering(["attn_v=Q8_0", f"{pattern}=Q8_0"]))


def decoder(n_layers: int, *, tied: bool = False) -> list[TensorShape]:
    tensors = [TensorShape("token_embd.weight", (1000, 256))]
    for bid in range(n_layers):
        tensors += [
            TensorShape(f"blk.{bid}.attn_norm.weight", (256,)),
            TensorShape(f"blk.{bid}.attn_v.weight", (128, 256)),
            TensorShape(f"blk.{bid}.ffn_down.weight", (256, 288)),
        ]
    return tensors if tied else [*tensors, TensorShape("output.weight", (1000, 256))]


def test_pure_gives_every_tensor_the_base_type() -> None:
    choices = choose_types("Q4_K_M", decoder(8), parse_steering(pure=True))
    assert {choice.wanted for name, choice in choices.items() if "norm" not in name} == {QType.Q4_K}


def test_the_types_of_output_and_embeddings() -> None:
    steering = parse_steering(["token|output=Q5_0"], "Q8_0", "IQ4_NL")
    untied, tied = (choose_types("Q4_K_M", decoder(2, tied=is_tied), steering) for is_tied in (False, True))
    assert untied["output.weight"].qtype == QType.Q8_0
    assert untied["token_embd.weight"].qtype == tied["token_embd.weight"].qtype == QType.IQ4_NL
    # A tied embedding is the output matrix, unless it has a type of its own.
    assert choose_types("Q4_K_M", decoder(2, tied=True), parse_steering((), "Q8_0"))[
        "token_embd.weight"
    ] == TypeChoice(QType.Q8_0, QType.Q8_0)


def test_rows_that_do_not_fit_a_steered_type_fall_back_too() -> None:
    tensors = [TensorShape("token_embd.weight", (1000, 288)), TensorShape("output.weight", (1000, 288))]
    choices = choose_types("Q8_0", tensors, parse_steering((), "Q4_K", "Q2_K"))
    assert choices["output.weight"] == TypeChoice(QType.Q5_0, QType.Q4_K)
    assert choices["token_embd.weight"] == TypeChoice(QType.Q4_0, QType.Q2_K)


def test_float_files_are_steered_by_name_of_output_and_embeddings_only() -> None:
    choices = choose_types("F16", decoder(2), parse_steering(["attn_v=Q8_0"], "Q8_0", "Q4_0", pure=True))
    assert choices["blk.0.attn_v.weight"].qtype == QType.F16
    assert choices["output.weight"].qtype == QType.Q8_0
    assert choices["token_embd.weight"].qtype == QType.Q4_0


def test_a_steered_tensor_moves_the_layers_with_more_bits_on_as_in_llama_cpp() -> None:
    def types(steering: Steering) -> list[QType]:
        choices = choose_types("Q4_K_M", decoder(16), steering)
        return [choices[f"blk.{bid}.attn_v.weight"].qtype for bid in range(16)]

    plain, steered = types(Steering()), types(rule(r"blk\.0\.attn_v=Q8_0"))
    assert steered == [QType.Q8_0, *plain[:15]]


@pytest.mark.parametrize("qtype", STEERABLE_TYPES)
def test_every_type_has_a_fallback_for_rows_that_do_not_fit(qtype: QType) -> None:
    choices = choose_types("Q4_K_M", decoder(2), rule(f"ffn_down={qtype.name}"))
    choice = choices["blk.0.ffn_down.weight"]
    assert choice.wanted == qtype
    assert choice.is_fallback == (block_size(qtype) == 256)


def test_a_file_of_tensor_types_is_read_as_llama_quantize_does(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q6_k  ffn_down=q8_0\r\n\n\tblk\\.0=iq4_xs\n")
    assert read_tensor_types(path) == ("attn_v=q6_k", "ffn_down=q8_0", r"blk\.0=iq4_xs")
    path.write_text("")
    assert read_tensor_types(path) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "is not a text"),
        (b" " * (2**20 + 1), "has over 1,048,576 bytes"),
    ],
)
def test_a_file_that_holds_no_tensor_types_is_one_clear_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "types.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_tensor_types(path)
    with pytest.raises(UsageError, match="is not a file"):
        read_tensor_types(tmp_path)
