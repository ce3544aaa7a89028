"""Benchmarks through a tiny bundle: what is asked, how often, and what is kept."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf import AceStep, EngineOptions, Question
from acestep_gguf.batch.rows import Row
from acestep_gguf.errors import BatchError, BenchmarkError, PromptError, UsageError
from acestep_gguf.score import run
from acestep_gguf.score.block_embeds import BlockEmbeds
from acestep_gguf.score.passes import Show
from acestep_gguf.score.report import ScoreReport, table
from acestep_gguf.score.run import score_bundle
from acestep_gguf.vision.tower import VisionTower
from tests.support.benchmark_files import encoded, png, write_tsv

ONE_AT_A_TIME = EngineOptions(n_threads=1, n_ctx=512, vision="float32")
QUICK: dict[str, Any] = {"max_tokens": 4, "options": ONE_AT_A_TIME, "quants": ["F32"]}


def mme(folder: Path, n_pictures: int = 3) -> Path:
    rows = [
        {"index": n, "image": encoded(n // 2 * 40), "image_path": f"OCR/{n // 2}.png"}
        | {"question": f"Is it {n}?", "answer": ("Yes", "No")[n % 2], "category": "OCR"}
        for n in range(2 * n_pictures)
    ]
    return write_tsv(folder / "MME_drawn.tsv", rows)


def mme_folder(folder: Path) -> Path:
    (folder / "OCR").mkdir()
    for number in range(3):
        (folder / f"OCR/{number}.png").write_bytes(png(number))
        (folder / f"OCR/{number}.txt").write_text("Is it red?\tYes\nIs it blue?\tNo\n")
    return folder


def seedbench(folder: Path) -> Path:
    rows = [
        {"index": n, "image": encoded(n * 40), "question": "How many?", "answer": "ABCD"[n]}
        | {"A": "One", "B": "Two", "C": "Three of them", "D": "Four", "category": "Instances Counting"}
        for n in range(3)
    ]
    return write_tsv(folder / "SEEDBench_drawn.tsv", rows)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def encoded_pictures(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often the tower saw which crops."""
    seen: Counter[bytes] = Counter()
    encode = VisionTower.encode_picture

    def counting(self: VisionTower, crops: Any, *rest: Any) -> Any:
        seen[b"".join(crop.tobytes() for crop in crops)] += 1
        return encode(self, crops, *rest)

    monkeypatch.setattr(VisionTower, "encode_picture", counting)
    return seen


def test_answers_are_those_of_generate_and_each_picture_is_encoded_once(
    tiny_bundle: Path, tmp_path: Path, encoded_pictures: Counter[bytes]
) -> None:
    out = tmp_path / "out"
    report = score_bundle(
        tiny_bundle, "mme", mme(tmp_path), output=out, **{**QUICK, "quants": ["q8_0", "F32"]}
    )
    assert [decoder.decoder for decoder in report.decoders] == ["Q8_0", "F32"]
    assert (report.questions, report.pictures, report.errors) == (6, 3, 0)
    assert sorted(encoded_pictures.values()) == [1, 1, 1]
    assert sorted(path.suffix for path in out.iterdir()) == [".journal", ".journal", ".jsonl", ".jsonl"]
    for quant in ("Q8_0", "F32"):
        found = lines(out / f"{quant}-vlmevalkit-answers.jsonl")
        with AceStep(tiny_bundle, ONE_AT_A_TIME, quant=quant) as model:
            for number, line in enumerate(found):
                question = f"Is it {number}?"
                answer = model.generate(question, [png(number // 2 * 40)], max_tokens=4)
                assert (line["index"], line["prompt"], line["answer"]) == (str(number), question, answer.text)
                assert (line["expected"], line["error"]) == (("Yes", "No")[number % 2], None)
                assert line["right"].keys() == {"vlmevalkit", "lmms-eval", "official"}


def test_in_blocks_no_more_embeds_are_on_disk_than_fit(
    tiny_bundle: Path, tmp_path: Path, encoded_pictures: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_bundle(tiny_bundle, "mme", mme(tmp_path, 5), output=tmp_path / "whole", **QUICK)
    encoded_pictures.clear()
    on_disk: list[int] = []

    @contextmanager
    def watching(n_done: int, n_all: int) -> Iterator[Show]:
        assert (n_done, n_all) == (0, 10)

        def show(_: Row) -> None:
            on_disk.append(len(list((tmp_path / "blocks/embeds").glob("[!.]*"))))

        yield show

    monkeypatch.setattr(run, "BLOCK_BYTES", 1)  # a picture at a time
    options = {**QUICK, "watching": watching}
    blocks = score_bundle(tiny_bundle, "mme", mme(tmp_path, 5), output=tmp_path / "blocks", **options)
    assert blocks == whole
    assert on_disk == [1] * 10
    assert sorted(encoded_pictures.values()) == [1] * 5
    name = "F32-vlmevalkit-answers.jsonl"
    assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_likelihoods_of_choices_are_the_models(tiny_bundle: Path, tmp_path: Path) -> None:
    report = score_bundle(tiny_bundle, "seedbench", seedbench(tmp_path), output=tmp_path, **QUICK)
    assert [(one.way, one.prompts) for one in report.decoders[0].passes] == [
        ("answers", "vlmevalkit"),
        ("likelihood", "official"),
    ]
    found = lines(tmp_path / "F32-official-likelihood.jsonl")
    texts = [" One", " Two", " Three of them", " Four"]
    with AceStep(tiny_bundle, ONE_AT_A_TIME, quant="F32") as model:
        for number, line in enumerate(found):
            asked = Question("Question: How many?\nAnswer:", [png(number * 40)])
            ours = model.likelihoods(asked, texts)
            assert line["sums"] == pytest.approx(dict(zip("ABCD", (one.sum for one in ours), strict=True)))
            assert line["means"] == pytest.approx(dict(zip("ABCD", (one.mean for one in ours), strict=True)))
            best = max(line["sums"], key=line["sums"].get)
            assert line["right"]["likelihood, sum"] == (best == "ABCD"[number])
    by_mean = score_bundle(
        tiny_bundle, "seedbench", seedbench(tmp_path), output=tmp_path, prompts="lmms-eval", **QUICK
    )
    assert [one.way for one in by_mean.decoders[0].passes] == ["answers", "likelihood"]
    assert lines(tmp_path / "F32-lmms-eval-likelihood.jsonl")[0]["prompt"] == "How many? Answer :"


def test_what_failed_is_asked_again_and_nothing_else(
    tiny_bundle: Path, tmp_path: Path, encoded_pictures: Counter[bytes]
) -> None:
    file, out = mme_folder(tmp_path), tmp_path / "out"
    (file / "OCR/1.png").write_bytes(png(1)[:40])
    report = score_bundle(tiny_bundle, "mme", file, output=out, **QUICK)
    assert report.errors == 2
    damaged = [line for line in lines(out / "F32-vlmevalkit-answers.jsonl") if line["error"]]
    assert [line["index"] for line in damaged] == ["OCR/1.png#1", "OCR/1.png#2"]
    assert {(line["answer"], line["right"]) for line in damaged} == {(None, None)}
    assert len(encoded_pictures) == 2
    (file / "OCR/1.png").write_bytes(png(1))
    assert score_bundle(tiny_bundle, "mme", file, output=out, **QUICK).errors == 0
    assert sorted(encoded_pictures.values()) == [1, 1, 1]


def test_a_limit_is_of_whole_questions_and_can_be_raised(
    tiny_bundle: Path, tmp_path: Path, encoded_pictures: Counter[bytes]
) -> None:
    out = tmp_path / "out"
    assert score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, limit=2, **QUICK).questions == 4
    assert score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **QUICK).questions == 6
    assert sorted(encoded_pictures.values()) == [1, 1, 1]


def test_answers_of_other_settings_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **QUICK)
    longer = {**QUICK, "max_tokens": 5}
    other = {**QUICK, "options": EngineOptions(n_threads=1, n_ctx=512, vision="int8")}
    with pytest.raises(BatchError, match="begun with another max_tokens"):
        score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **longer)
    with pytest.raises(BatchError, match="begun with another bundle"):
        score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **other)
    assert score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, restart=True, **longer).errors == 0


def test_answers_that_nobody_has_published(tiny_bundle: Path, tmp_path: Path) -> None:
    row = {"index": 7, "image": encoded(), "question": "Which?", "A": "a", "B": "b", "category": "x"}
    file = write_tsv(tmp_path / "MMBench_TEST.tsv", [row])
    report = score_bundle(tiny_bundle, "mmbench", file, output=tmp_path, **QUICK)
    assert report.decoders[0].passes[0].scores == ()
    assert table(report).endswith("not published: those of the bundle are kept, to be sent in.")
    (line,) = lines(tmp_path / "F32-vlmevalkit-answers.jsonl")
    assert (line["right"], line["expected"]) == (None, None)
    assert line["answer"]


def test_what_cannot_be_scored(tiny_bundle: Path, bundle_copy: Path, tmp_path: Path) -> None:
    file = mme(tmp_path)
    with pytest.raises(UsageError, match="choose from mme, mmbench, seedbench, mathvista"):
        score_bundle(tiny_bundle, "mmmu", file, output=tmp_path, **QUICK)
    with pytest.raises(BenchmarkError, match=r"no prompts=llava: choose from vlmevalkit, lmms-eval, off"):
        score_bundle(tiny_bundle, "mme", file, output=tmp_path, prompts="llava", **QUICK)
    with pytest.raises(UsageError, match="limit is 0"):
        score_bundle(tiny_bundle, "mme", file, output=tmp_path, limit=0, **QUICK)
    with pytest.raises(BenchmarkError, match="cannot be made"):
        score_bundle(tiny_bundle, "mme", file, output=file / "out", **QUICK)
    facts = json.loads((bundle_copy / "bundle.json").read_bytes())
    facts |= {"vision": None, "image": None}
    facts["prompt"]["image_token"] = facts["source"]["vision_model_type"] = None
    (bundle_copy / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(PromptError, match="no vision tower"):
        score_bundle(bundle_copy, "mme", file, output=tmp_path, **QUICK)
    assert not list(tmp_path.glob("*.journal"))


def test_embeds_that_a_kill_left_are_used_and_removed_and_other_files_are_not(
    tiny_bundle: Path, tmp_path: Path, encoded_pictures: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(BlockEmbeds, "forget", lambda _: None)
        score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **QUICK)
    (first, second, third) = (out / "embeds").iterdir()
    (out / f"embeds/.{first.name}.0123abcd.partial").write_bytes(b"half")
    (out / "embeds/mine.safetensors").write_bytes(b"mine")
    second.write_bytes(second.read_bytes()[:-1])
    encoded_pictures.clear()
    score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, restart=True, **QUICK)
    assert sum(encoded_pictures.values()) == 1  # the damaged one
    assert [path.name for path in (out / "embeds").iterdir()] == ["mine.safetensors"]
    third.write_bytes(b"x")
    score_bundle(tiny_bundle, "mme", mme(tmp_path), output=out, **QUICK)
    assert not third.exists()


def test_two_processes_do_not_score_into_one_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    @contextmanager
    def watching(_: int, __: int) -> Iterator[Show]:
        with pytest.raises(BenchmarkError, match="another process writes into"):
            score_bundle(tiny_bundle, "mme", mme(tmp_path), output=tmp_path, prompts="lmms-eval", **QUICK)
        yield lambda _: None

    score_bundle(tiny_bundle, "mme", mme(tmp_path), output=tmp_path, **{**QUICK, "watching": watching})


def test_a_table_beside_the_cards_figure(tiny_bundle: Path, tmp_path: Path) -> None:
    report: ScoreReport = score_bundle(
        tiny_bundle, "mme", mme(tmp_path), output=tmp_path, **{**QUICK, "quants": ["Q8_0", "F32"]}
    )
    head, columns, first, *rest = table(report).splitlines()
    assert head == f"{report.bundle}: MME, 6 questions about 3 pictures"
    assert columns.split() == ["score", "rule", "prompts", "n", "most", "Q8_0", "F32", "card*"]
    assert first.split()[:3] == ["total", "vlmevalkit", "vlmevalkit"]
    assert first.endswith("2158.9")
    assert not any(line.endswith("2158.9") for line in rest if line.startswith("OCR"))
    assert rest[-2] == "* 2158.9 is what the card of the described model claims. Nobody here measured it."
