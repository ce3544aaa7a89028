"""On a real cluster of two nodes on this machine, one of which is killed while it answers."""

import io
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import pyarrow
import pytest
import ray
from PIL import Image
from pyarrow import parquet

from acestep_gguf import AceStep, AnswerOptions, EngineOptions
from acestep_gguf.ray import AnswerPictures
from tests.support.ray_cluster import ray_cluster

pytestmark = pytest.mark.slow

QUESTION: Final = "What is this?"
ENGINE: Final = EngineOptions(quant="F32", n_ctx=256)
OPTIONS: Final = AnswerOptions(max_tokens=6)
N_PICTURES: Final = 40
ROWS: Final = 4  # of a block
BROKEN: Final = (7, 27)  # one in twenty


class WaitsForItsEnd(AnswerPictures):
    """On one node, an actor that has a block and never gives it back: the node is killed then."""

    def __init__(self, *arguments: Any, doomed: str, reached: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_doomed = ray.get_runtime_context().get_node_id() == doomed
        self._reached = Path(reached)

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        if self._is_doomed:
            self._reached.touch()
            threading.Event().wait()
        return super().__call__(block)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By their names."""
    found = {}
    for number in range(N_PICTURES):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (6 * number, 255 - 6 * number, 3 * number)).save(file, "PNG")
        found[f"{number:02}"] = b"\x89PNG and no more" if number in BROKEN else file.getvalue()
    return found


@pytest.fixture(scope="module")
def expected(pictures: dict[str, bytes], tiny_bundle: Path) -> dict[str, str | None]:
    """The answers of this process."""
    with AceStep(tiny_bundle, ENGINE, n_threads=1) as model:
        return {
            name: None if int(name) in BROKEN else model.generate(QUESTION, [data], OPTIONS).text
            for name, data in pictures.items()
        }


def test_a_node_is_killed_and_every_picture_is_one_row(
    pictures: dict[str, bytes], expected: dict[str, str | None], tiny_bundle: Path, tmp_path: Path
) -> None:
    with ray_cluster(n_cpus=2) as cluster:
        (doomed,) = cluster.worker_nodes
        reached = tmp_path / "reached"
        killer = threading.Thread(target=_kill, args=(cluster, doomed, reached), daemon=True)
        killer.start()
        table = pyarrow.table({"id": [*pictures], "image": [*pictures.values()]})
        blocks = [table.slice(start, ROWS) for start in range(0, N_PICTURES, ROWS)]
        answers = ray.data.from_arrow(blocks).map_batches(
            WaitsForItsEnd,
            fn_constructor_args=[tiny_bundle],
            fn_constructor_kwargs={
                "prompt": QUESTION,
                "options": OPTIONS,
                "engine": ENGINE,
                "doomed": doomed.node_id,
                "reached": str(reached),
            },
            batch_format="pyarrow",
            batch_size=ROWS,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
            ray_remote_args_fn=lambda: {"scheduling_strategy": "SPREAD"},
        )
        answers.write_parquet(str(tmp_path / "answers"), min_rows_per_file=N_PICTURES // 2)
        killer.join()
        assert [node["Alive"] for node in ray.nodes()].count(False) == 1
    rows = parquet.read_table(tmp_path / "answers").to_pylist()
    assert sorted(row["id"] for row in rows) == [*pictures]
    assert {row["id"]: row["text"] for row in rows} == expected
    assert {row["id"] for row in rows if row["error"]} == {f"{number:02}" for number in BROKEN}


def test_folders_parquet_and_webdataset(
    pictures: dict[str, bytes], expected: dict[str, str | None], tiny_bundle: Path, tmp_path: Path
) -> None:
    """What Ray's own readers make of them."""
    some = ("03", "07", "11")
    (tmp_path / "folder").mkdir()
    for name in some:
        (tmp_path / "folder" / f"{name}.png").write_bytes(pictures[name])
    table = pyarrow.table({"id": some, "image": [pictures[name] for name in some]})
    parquet.write_table(table, tmp_path / "some.parquet")
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for name in some:
            archive.add(tmp_path / "folder" / f"{name}.png", f"{name}.png")
    with ray_cluster(n_cpus=2, n_nodes=1):
        folder = ray.data.read_binary_files(str(tmp_path / "folder"), include_paths=True)
        webdataset = ray.data.read_webdataset(str(tmp_path / "some.tar"), decoder=None).select_columns(
            ["__key__", "png"]
        )
        answers = (
            folder.rename_columns({"path": "id", "bytes": "image"})
            .union(
                ray.data.read_parquet(str(tmp_path / "some.parquet")),
                webdataset.rename_columns({"__key__": "id", "png": "image"}),
            )
            .map_batches(
                AnswerPictures,
                fn_constructor_args=[tiny_bundle],
                fn_constructor_kwargs={"prompt": QUESTION, "options": OPTIONS, "engine": ENGINE},
                batch_format="pyarrow",
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
        )
        rows = [(Path(row["id"]).stem, row["text"]) for row in answers.take_all()]
    assert sorted(rows, key=str) == sorted([(name, expected[name]) for name in some] * 3, key=str)


def _kill(cluster: Any, node: Any, reached: Path) -> None:
    while not reached.exists():
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
