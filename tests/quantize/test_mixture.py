"""The search for a mixture on a tiny bundle; scripts/bench/mixture.py measures what it gains on the demo."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as QType
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import UsageError
from acestep_gguf.quantize.divergence import Judge, Measured
from acestep_gguf.quantize.mixture import MixtureReport, MixtureRequest, groups_of, search_mixture, types_of
from acestep_gguf.quantize.recipes import TensorShape
from acestep_gguf.quantize.requantize import quantize_gguf
from acestep_gguf.quantize.steering import parse_steering, read_tensor_types
from tests.support.command_line import acestep, check_is_one_line
from tests.support.llama_quantize import llama_quantize, read_tensors


@pytest.fixture(scope="module")
def found(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MixtureReport, list[str]]:
    lines: list[str] = []
    picture = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    request = MixtureRequest(size="Q4_K_M", max_tokens=4, layers_together=2, swaps=2, threads=1)
    scratch = tmp_path_factory.mktemp("scratch")
    report = search_mixture(tiny_bundle, [(picture, "What?")], request, scratch, on_measured=lines.append)
    return report, lines


@pytest.mark.slow
def test_a_mixture_is_no_larger_and_loses_less(found: tuple[MixtureReport, list[str]]) -> None:
    report, lines = found
    assert report.plain is not None
    assert report.mixture.n_bytes <= report.max_bytes == report.plain.n_bytes
    assert report.mixture.kl_divergence < report.plain.kl_divergence
    assert len(lines) == report.n_measured
    assert "blk.0.ffn_down" in "".join(lines)


@pytest.mark.slow
def test_both_make_the_same_of_a_recipe(
    found: tuple[MixtureReport, list[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    mixture = found[0].mixture
    (recipe := tmp_path / "recipe.txt").write_text(mixture.recipe)
    source = tiny_bundle / Bundle.read(tiny_bundle).decoder("F32").file
    rules = read_tensor_types(recipe)
    quantize_gguf(source, tmp_path / "ours.gguf", "Q4_K_M", steering=parse_steering(rules))
    assert (tmp_path / "ours.gguf").stat().st_size == mixture.n_bytes
    # Like llama-quantize, which cuts at the first "=".
    theirs = {pattern: QType[qtype] for pattern, _, qtype in (rule.partition("=") for rule in rules)}
    llama_quantize(source, tmp_path / "theirs.gguf", "Q4_K_M", tensor_types=theirs)
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(tmp_path / "theirs.gguf")
    types = {name: qtype for name, (qtype, _) in read_tensors(tmp_path / "ours.gguf").items()}
    assert {name: types[name] for name in mixture.types} == {
        name: qtype.name for name, qtype in mixture.types.items()
    }


@pytest.mark.slow
def test_the_reference_loses_nothing(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    judge = Judge(tiny_bundle, [(picture, "What?")], tmp_path, max_tokens=4, threads=1)
    assert judge.measure(judge.reference_types, "reference").kl_divergence == 0.0
    coarse = judge.measure(judge.reference_types | {"output.weight": QType.Q2_K}, "coarse")
    fine = judge.measure(judge.reference_types | {"output.weight": QType.Q8_0}, "fine")
    assert coarse.kl_divergence > fine.kl_divergence > 0.0
    assert coarse.n_bytes < fine.n_bytes


@pytest.mark.slow
def test_a_size_that_nothing_fits_and_pictures_that_are_missing(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recipe.txt"
    done = acestep("mixture", tiny_bundle, picture, "-o", out, "--size", "1000", "-n", "2", "--question", "?")
    check_is_one_line(done, "no mixture has 1,000 bytes")
    done = acestep("mixture", tiny_bundle, picture, "-o", out, "--size", "Q9")
    check_is_one_line(done, "--size")
    done = acestep("mixture", tiny_bundle, picture, "-o", out, "--layers-together", "0")
    check_is_one_line(done, "--layers-together")
    done = acestep("mixture", tiny_bundle, picture, "-o", tmp_path / "none" / "recipe.txt")
    check_is_one_line(done, "give another --output")
    assert list(tmp_path.iterdir()) == [picture]


def test_without_a_reference_nothing_is_measured(bundle_copy: Path, picture: Path, tmp_path: Path) -> None:
    text = (bundle_copy / "bundle.json").read_text().replace('"F32": {', '"Q6_K": {')
    (bundle_copy / "bundle.json").write_text(text)
    with pytest.raises(UsageError, match="no decoder to compare with: convert with -q F16"):
        Judge(bundle_copy, [(picture, "What?")], tmp_path, max_tokens=4, threads=1)


def shapes(n_layers: int, n_ff: int = 512) -> list[TensorShape]:
    layers = [
        TensorShape(f"blk.{layer}.{role}.weight", shape)
        for layer in range(n_layers)
        for role, shape in (("attn_v", (128, 256)), ("ffn_down", (256, n_ff)), ("attn_norm", (256,)))
    ]
    return [TensorShape("token_embd.weight", (1000, 256)), *layers, TensorShape("output_norm.weight", (256,))]


def test_layers_are_taken_together_and_every_matrix_once() -> None:
    for together, n_groups in ((1, 11), (2, 7), (3, 5), (5, 3)):
        groups = groups_of(shapes(5), together)
        assert len(groups) == n_groups
        names = [tensor.name for group in groups for tensor in group.tensors]
        assert len(names) == len(set(names)) == 11
    assert set(types_of(groups, (0, 1, 2)).values()) == {
        group.types[number] for group, number in zip(groups, (0, 1, 2), strict=True)
    }


def test_types_that_do_not_fit_give_way_to_their_fallbacks() -> None:
    groups = {group.name: group for group in groups_of(shapes(1, n_ff=288), 1)}
    assert [qtype.name for qtype in groups["blk.0.ffn_down"].types] == [
        "Q4_0",
        "IQ4_NL",
        "Q5_0",
        "Q5_1",
        "Q8_0",
    ]
    assert groups["blk.0.attn_v"].types[0] == QType.Q2_K
    sizes = [groups["blk.0.attn_v"].n_bytes(qtype) for qtype in groups["blk.0.attn_v"].types]
    assert sizes == sorted(sizes)


def test_a_recipe_names_every_tensor_exactly() -> None:
    types = {
        "output.weight": QType.Q6_K,
        "blk.10.attn_output.weight": QType.F16,
        "blk.2.ffn_up.weight": QType.Q4_K,
    }
    measured = Measured(types=types, n_bytes=1, divergences=())
    assert measured.recipe == (
        "^output\\.weight$=Q6_K\n^blk\\.2\\.ffn_up\\.weight$=Q4_K\n^blk\\.10\\.attn_output\\.weight$=F16\n"
    )
