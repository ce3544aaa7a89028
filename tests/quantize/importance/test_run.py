"""From pictures and texts to files; llama-imatrix's own, of ``TinyCheckpoint()``, lies in llama_imatrix."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.workload import plan_here
from acestep_gguf.errors import (
    ContextOverflowError,
    ImageError,
    ImatrixError,
    MemoryShortageError,
    UsageError,
)
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.machine import Machine
from acestep_gguf.quantize.imatrix import read_imatrix, read_sums
from acestep_gguf.quantize.importance import loading
from acestep_gguf.quantize.importance.run import ImatrixOptions, Made, TextFile, make_imatrix
from acestep_gguf.quantize.importance.samples import Sample
from acestep_gguf.quantize.importance.state import State, state_path
from acestep_gguf.quantize.requantize import quantize_gguf
from scripts.checks.imatrix import N_CTX, TEXT
from tests.support.killed_processes import run as run_in_process
from tests.support.llama_quantize import llama_quantize, read_tensors
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint

GOLDEN = Path(__file__).parents[1] / "llama_imatrix" / "imatrix.gguf"
ENGINE = EngineOptions(n_threads=1)
FEW = ImatrixOptions(max_tokens=5)
N_MATRICES = 2 * 7


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(paths[-1])
    return [Sample((path,), "Which colour is this?") for path in paths]


@pytest.fixture(scope="module")
def f16_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f16") / "bundle"
    convert_checkpoint(tiny_checkpoint, folder, ["F16"], vision=["float32"])
    return folder


def make_of_text(bundle: Path, folder: Path, engine: EngineOptions = ENGINE) -> Made:
    (folder / "text.txt").write_text(TEXT)
    changed = EngineOptions(n_threads=1, n_ctx=N_CTX) if engine is ENGINE else engine
    return make_imatrix(bundle, folder / "ours.gguf", TextFile(folder / "text.txt"), engine=changed)


def test_a_text_gives_llama_imatrixs_file(f16_bundle: Path, tmp_path: Path) -> None:
    """scripts/checks/imatrix.py compares bytes on one machine; another CPU adds up in another order."""
    made = make_of_text(f16_bundle, tmp_path)
    ours, theirs = read_sums(made.path), read_sums(GOLDEN)
    assert ours.counts == theirs.counts
    assert ours.n_chunks == theirs.n_chunks == made.n_samples
    assert ours.sums.keys() == theirs.sums.keys()
    for name, sums in theirs.sums.items():
        np.testing.assert_allclose(ours.sums[name], sums, rtol=1e-3)
    (dataset,) = ours.datasets
    assert dataset == str(tmp_path / "text.txt")
    # Keys, tensors and where they lie, but for the path of the text.
    theirs_bytes = GOLDEN.read_bytes()
    start, end = theirs_bytes.index(b"imatrix.chunk_count"), theirs_bytes.rindex(b".counts")
    assert theirs_bytes[start:end] in made.path.read_bytes()


def test_blocks_with_our_file_are_llama_quantizes(f16_bundle: Path, tmp_path: Path) -> None:
    imatrix = make_of_text(f16_bundle, tmp_path).path
    source = f16_bundle / Bundle.read(f16_bundle).decoder().file
    quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M", imatrix=imatrix)
    expected = llama_quantize(
        source, tmp_path / "expected.gguf", "Q4_K_M", imatrix=dict(read_imatrix(imatrix).entries)
    )
    assert read_tensors(tmp_path / "q.gguf") == read_tensors(expected)


def test_a_text_shorter_than_a_chunk_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Short.")
    with pytest.raises(ImatrixError, match="has fewer than the 512 tokens of a chunk"):
        make_imatrix(tiny_bundle, tmp_path / "out.gguf", TextFile(tmp_path / "text.txt"), engine=ENGINE)


def test_pictures_are_read_by_the_best_decoder_with_its_own_answers(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    shown = []
    made = make_imatrix(
        tiny_bundle,
        tmp_path / "out.gguf",
        samples,
        FEW,
        engine=ENGINE,
        dataset="photos",
        on_progress=lambda *counts: shown.append(counts),
    )
    assert (made.decoder, made.tower, made.n_entries) == ("F32", "float32", N_MATRICES)
    assert shown == [(0, 3), (1, 3), (2, 3), (3, 3)]
    options = EngineOptions(n_threads=1, quant="F32", vision="float32")
    with AceStep(tiny_bundle, options) as model:
        answers = [model.generate(one.prompt, one.images, max_tokens=5) for one in samples]
    usages = [answer.usage for answer in answers]
    assert made.rows == {
        "prompt": sum(usage.prompt_tokens - usage.image_tokens for usage in usages),
        "picture": sum(usage.image_tokens for usage in usages),
        "answer": sum(usage.completion_tokens for usage in usages),
    }
    written = read_sums(made.path)
    assert written.datasets == ("photos (balanced)",)
    for name, counts in written.counts.items():  # of the last layer, too
        assert counts.tolist() == [sum(made.rows.values())], name


@pytest.mark.parametrize("decoder", ["qwen2", "llama"])
def test_answers_that_are_given_are_read(tmp_path: Path, decoder: Decoder) -> None:
    """Of byte-level BPE, and of SentencePiece, where a text's first space belongs to its first token."""
    checkpoint = TinyCheckpoint(decoder=decoder).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"], vision=["float32"])
    text = "A blue square on a red background."
    given = [Sample((), "Why?", text), Sample((), "Why?", "")]
    made = make_imatrix(
        tmp_path / "bundle", tmp_path / "out.gguf", given, ImatrixOptions(weighting="text"), engine=ENGINE
    )
    with AceStep(tmp_path / "bundle", ENGINE) as model:
        n_prompt = model.generate("Why?", max_tokens=1).usage.prompt_tokens
        (likelihood,) = model.likelihoods(Question("Why?"), [text])
    assert made.rows == {"prompt": 2 * n_prompt, "picture": 0, "answer": len(likelihood.tokens)}


def test_another_weighting_reads_nothing_again(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    means = {}
    for weighting in ("balanced", "text", "pictures"):
        options = ImatrixOptions(max_tokens=5, weighting=weighting)
        made = make_imatrix(tiny_bundle, out, samples, options, engine=ENGINE)
        means[weighting] = read_imatrix(made.path).entries
        monkeypatch.setattr("acestep_gguf.quantize.importance.run.loaded", None)  # fails if it is called
    for name, mean in means["balanced"].items():
        half = (means["text"][name] + means["pictures"][name]) / 2
        np.testing.assert_allclose(mean, half, rtol=1e-5)
        assert not np.allclose(means["text"][name], means["pictures"][name], rtol=1e-2)


def make_and_die(bundle: Path, out: Path, samples: list[Sample], after: int) -> None:
    def die(n_done: int, _: int) -> None:
        if n_done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    make_imatrix(bundle, out, samples, FEW, engine=ENGINE, on_progress=die)


@pytest.mark.slow
def test_a_killed_run_goes_on_after_the_last_whole_sample(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    make_imatrix(tiny_bundle, whole, samples, FEW, engine=ENGINE)
    assert not run_in_process(make_and_die, tiny_bundle, out, samples, 2)
    assert not out.exists()
    shown = []
    make_imatrix(
        tiny_bundle, out, samples, FEW, engine=ENGINE, on_progress=lambda n_done, _: shown.append(n_done)
    )
    assert shown == [2, 3]
    assert out.read_bytes() == whole.read_bytes()


def test_what_another_command_left_is_refused_or_forgotten(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    make_imatrix(tiny_bundle, out, samples[:1], FEW, engine=ENGINE)
    before = out.read_bytes()
    with pytest.raises(ImatrixError, match="other data or other settings"):
        make_imatrix(tiny_bundle, out, samples[1:2], FEW, engine=ENGINE)
    assert out.read_bytes() == before
    anew = ImatrixOptions(max_tokens=5, restart=True)
    assert make_imatrix(tiny_bundle, out, samples[1:2], anew, engine=ENGINE).n_samples == 1
    assert out.read_bytes() != before


def test_files_are_put_together(f16_bundle: Path, samples: list[Sample], tmp_path: Path) -> None:
    one = make_imatrix(f16_bundle, tmp_path / "one.gguf", samples[:1], FEW, engine=ENGINE, dataset="one")
    both = ImatrixOptions(max_tokens=5, in_files=[GOLDEN, one.path])
    make_imatrix(f16_bundle, tmp_path / "both.gguf", [], both)
    more = ImatrixOptions(max_tokens=5, in_files=[GOLDEN])
    make_imatrix(f16_bundle, tmp_path / "more.gguf", samples[:1], more, engine=ENGINE, dataset="one")
    golden, own, merged = (read_sums(path) for path in (GOLDEN, one.path, tmp_path / "both.gguf"))
    assert merged.datasets == ("text.txt", "one (balanced)")
    for name, sums in merged.sums.items():
        np.testing.assert_array_equal(sums, golden.sums[name] + own.sums[name])
        np.testing.assert_array_equal(merged.counts[name], golden.counts[name] + own.counts[name])
    assert (tmp_path / "more.gguf").read_bytes() == (tmp_path / "both.gguf").read_bytes()


def test_files_of_other_models_and_nothing_at_all_are_refused(tmp_path: Path, f16_bundle: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to read"):
        make_imatrix(f16_bundle, tmp_path / "out.gguf", [])
    legacy = ImatrixOptions(in_files=[GOLDEN.with_suffix(".dat")])
    with pytest.raises(ImatrixError, match="in the older format"):
        make_imatrix(f16_bundle, tmp_path / "out.gguf", [], legacy)
    wide = TinyCheckpoint(intermediate_size=768).write(tmp_path / "wide")
    convert_checkpoint(wide, tmp_path / "other", ["F16"], vision=["float32"])
    with pytest.raises(ImatrixError, match=r"another model \(blk\.0\.ffn_down\.weight has 512 values\)"):
        make_imatrix(tmp_path / "other", tmp_path / "out.gguf", [], ImatrixOptions(in_files=[GOLDEN]))


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_matrix_counts_if_it_is_wanted(tmp_path: Path, tied: bool) -> None:
    checkpoint = TinyCheckpoint(tied=tied).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"], vision=["float32"])
    sample = Sample((), "Why?", "Because.")
    names = {}
    for wanted in (False, True):
        options = ImatrixOptions(process_output=wanted, weighting="text")
        out = tmp_path / f"{wanted}.gguf"
        make_imatrix(tmp_path / "bundle", out, [sample], options, engine=ENGINE)
        names[wanted] = set(read_sums(out).sums)
    assert names[True] - names[False] == {"token_embd.weight" if tied else "output.weight"}
    assert len(names[False]) == N_MATRICES


REFUSALS: dict[str, tuple[type[Exception], str, Callable[[Path, list[Sample]], list[Sample]]]] = {
    "no picture": (ImageError, "cannot be read", lambda folder, _: [Sample((folder / "none.png",), "?")]),
    "too long": (ContextOverflowError, "raise n_ctx", lambda *_: [Sample((), "long " * 500, "")]),
    "too long an answer": (ContextOverflowError, "raise n_ctx", lambda *_: [Sample((), "?", "long " * 500)]),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_samples_that_cannot_be_read(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path, what: str
) -> None:
    error, words, make = REFUSALS[what]
    with pytest.raises(error, match=words):
        make_imatrix(tiny_bundle, tmp_path / "out.gguf", make(tmp_path, samples), FEW, engine=ENGINE)
    assert not (tmp_path / "out.gguf").exists()


def test_logits_that_do_not_fit_are_refused_before_anything_is_loaded(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine where the plan fits with the logits of one row, but not with those of all."""

    def barely(*arguments: object) -> object:
        plan = plan_here(*arguments)  # type: ignore[arg-type]
        object.__setattr__(plan, "machine", Machine(ram=plan.memory.ram, n_threads=1))
        return plan

    monkeypatch.setattr(loading, "plan_here", barely)
    with pytest.raises(MemoryShortageError, match="lower n_ubatch"):
        make_imatrix(tiny_bundle, tmp_path / "out.gguf", samples, FEW, engine=ENGINE)


def test_an_output_that_cannot_be_written_is_found_before_anything_is_read(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path
) -> None:
    for out, problem in ((tmp_path / "none" / "out.gguf", "is not a folder"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=problem):
            make_imatrix(tiny_bundle, out, samples, FEW, engine=ENGINE)


def test_the_state_of_a_finished_run_stays(tiny_bundle: Path, samples: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    make_imatrix(tiny_bundle, out, samples[:1], FEW, engine=ENGINE)
    state = state_path(out)
    assert state.is_file()
    with pytest.raises(ImatrixError):
        State.read(state, "another identity")
