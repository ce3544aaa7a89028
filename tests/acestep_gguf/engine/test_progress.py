from itertools import groupby, pairwise
from pathlib import Path

from PIL import Image

from acestep_gguf import AceStep, Progress


def test_it_is_told_from_loading_to_the_first_token(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "blue.png")
    pictures = [picture, tmp_path / "blue.png"]
    told: list[Progress] = []
    with AceStep(
        tiny_bundle, quant="F32", n_threads=1, n_ctx=128, n_batch=8, on_progress=told.append
    ) as model:
        assert told == [Progress("loading")]
        stream = model.stream("What is this?", pictures, max_tokens=4)
        next(stream)
        n_told = len(told)
        *_, last = stream
        assert len(told) == n_told
        stages = [stage for stage, _ in groupby(told, key=lambda progress: progress.stage)]
        assert stages == ["loading", "reading", "loading", "encoding", "reading"]
        encoding = [progress for progress in told if progress.stage == "encoding"]
        assert encoding == [Progress("encoding", 0, 2), Progress("encoding", 1, 2)]
        reading = [progress for progress in told if progress.stage == "reading"]
        assert all(before.done <= after.done for before, after in pairwise(reading))
        assert last.answer is not None
        assert reading[0] == Progress("reading", 0, last.answer.usage.prompt_tokens)
        assert reading[-1].done == reading[-1].total
        told.clear()
        again = model.generate("What is this?", pictures, max_tokens=1)
        n_new = again.usage.prompt_tokens - again.usage.cached_tokens
        assert {progress.stage for progress in told} == {"reading"}
        assert [told[0], told[-1]] == [Progress("reading", 0, n_new), Progress("reading", n_new, n_new)]
