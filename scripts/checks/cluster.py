"""Pictures of the demo on a Ray cluster of nodes on this machine, one of which is killed in the middle.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.cluster demo-bundle --work /tmp/cluster-check

One picture in twenty is broken. Checked: every picture is exactly one row, the broken ones and no others are
errors, and texts are those of one process. Then it is timed, without a loss, with one worker and with more.
"""

import argparse
import json
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
import pyarrow
import ray
from pyarrow import parquet

from acestep_gguf import AceStep, EngineOptions
from acestep_gguf.ray import AnswerPictures
from scripts.demo.scenes import draw, random_scene
from tests.support.ray_cluster import ray_cluster

QUESTION: Final = "What colour is the background?"
ONE_IN: Final = 20
ROWS: Final = 25  # of a block
ENGINE: Final = EngineOptions(n_threads=1, n_ctx=256)  # one answer at a time: the same texts wherever


def draw_pictures(folder: Path, count: int) -> set[str]:
    """Draw them, unless they are there; gives the paths of those that are broken."""
    folder.mkdir(parents=True, exist_ok=True)
    broken = set()
    for number in range(count):
        path = folder / f"{number:05}.png"
        is_broken = number % ONE_IN == ONE_IN // 2
        if is_broken:
            broken.add(str(path))
        if not path.exists():
            draw(random_scene(Random(number), True, 3), Random(number), (448, 448))[0].save(path)
            if is_broken:
                path.write_bytes(path.read_bytes()[: 100 + number % 500])
    return broken


class Watched(AnswerPictures):
    """Leaves a file for each block that it has answered, with the node that did."""

    def __init__(self, *arguments: Any, done: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._done = Path(done)
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        answers = super().__call__(block)
        (self._done / f"{self._node}-{time.time_ns()}").write_text(str(psutil.Process().memory_info().rss))
        return answers


def answer(bundle: Path, pictures: Path, work: Path, *, workers: int, kill: bool) -> dict[str, Any]:
    """Answer about all of them; figures of the run."""
    done, output = work / "done", work / "answers"
    done.mkdir(parents=True)
    paths = sorted(map(str, pictures.iterdir()))
    blocks = [pyarrow.table({"image": paths[at : at + ROWS]}) for at in range(0, len(paths), ROWS)]
    with ray_cluster(n_cpus=max(2, workers), n_nodes=2) as cluster:
        if kill:
            (doomed,) = cluster.worker_nodes
            arguments = (cluster, doomed, done, len(blocks))
            threading.Thread(target=_kill, args=arguments, daemon=True).start()
        began = time.perf_counter()
        ray.data.from_arrow(blocks).map_batches(
            Watched,
            fn_constructor_args=[bundle],
            fn_constructor_kwargs={"prompt": QUESTION, "engine": ENGINE, "done": str(done)},
            batch_format="pyarrow",
            batch_size=ROWS,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            ray_remote_args_fn=lambda: {"scheduling_strategy": "SPREAD"},
        ).write_parquet(str(output))
        took = time.perf_counter() - began
        n_dead = [node["Alive"] for node in ray.nodes()].count(False)
    times = sorted((int(path.name.split("-")[1]), path) for path in done.iterdir())
    nodes = Counter(path.name.split("-")[0][:8] for _, path in times)
    steady = (times[-1][0] - times[workers][0]) / 1e9
    return {
        "pictures": len(paths),
        "workers": workers,
        "nodes_killed": n_dead,
        "seconds": round(took, 1),
        "pictures_per_s": round(len(paths) / took, 2),
        "pictures_per_s_after_loading": round(ROWS * (len(times) - workers) / steady, 2),
        "blocks_by_node": dict(nodes),
        "worker_mib": max(int(path.read_text()) for _, path in times) >> 20,
    }


def _kill(cluster: Any, node: Any, done: Path, n_blocks: int) -> None:
    """When a third of the blocks are answered, and it has answered some of them."""
    while len([*done.iterdir()]) < n_blocks / 3 or not [*done.glob(f"{node.node_id}-*")]:
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)


def check(bundle: Path, pictures: Path, output: Path, broken: set[str]) -> dict[str, int]:
    """What is wrong with a table."""
    rows = parquet.read_table(output).to_pylist()
    paths = {str(path) for path in pictures.iterdir()}
    counts = Counter(row["path"] for row in rows)
    with AceStep(bundle, ENGINE) as model:
        texts = {path: model.generate(QUESTION, [path]).text for path in sorted(paths - broken)}
    return {
        "rows": len(rows),
        "missing": len(paths - counts.keys()),
        "twice": sum(count > 1 for count in counts.values()),
        "wrong_errors": sum((row["error"] is not None) != (row["path"] in broken) for row in rows),
        "other_texts": sum(row["text"] != texts.get(row["path"]) for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=lambda path: Path(path).resolve())
    parser.add_argument("--work", type=Path, required=True, help="folder that is made")
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--timed", type=int, default=500, help="pictures of each timed run without a loss")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    work = options.work.resolve()
    broken = draw_pictures(work / "pictures", options.pictures)
    lost = answer(options.bundle, work / "pictures", work / "lost", workers=2, kill=True)
    print(json.dumps(lost), flush=True)
    found = check(options.bundle, work / "pictures", work / "lost/answers", broken)
    print(json.dumps(found), flush=True)
    draw_pictures(work / "timed", options.timed)
    for workers in options.workers:
        run = answer(options.bundle, work / "timed", work / f"workers-{workers}", workers=workers, kill=False)
        print(json.dumps(run), flush=True)
    if found.pop("rows") != options.pictures or any(found.values()):
        raise SystemExit("the table is wrong")


if __name__ == "__main__":
    main()
