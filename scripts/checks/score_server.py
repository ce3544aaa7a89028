"""Let VLMEvalKit and lmms-eval ask a server and score its answers, and score the same answers by our rules.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.score_server demo-bundle

The questions and the environments are those of score_harnesses.py. VLMEvalKit asks through its client for
OpenAI's API, lmms-eval by tasks of ours, which name its own functions and read local Parquet files. MathVista
is left out: both would ask a judge.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from acestep_gguf.score.benchmarks import BENCHMARKS
from scripts.checks.drawn_benchmarks import Drawn, draw_all
from scripts.checks.score_harnesses import (
    LMMS_EVAL_HARNESS,
    MAX_TOKENS,
    VLMEVALKIT_HARNESS,
    Harness,
    asked,
    compared,
    environment,
    read_command_line,
)
from scripts.checks.server_load import started

TASK: Final = """task: {name}_drawn
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.picture_of
doc_to_text: !function functions.{prefix}_doc_to_text
doc_to_target: answer
process_results: !function functions.{process}
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
metric_list:
{metrics}
"""
METRIC: Final = "  - metric: {}\n    aggregation: !function functions.{}\n    higher_is_better: true\n"
POST_PROMPT: Final = 'lmms_eval_specific_kwargs:\n  default:\n    pre_prompt: ""\n    post_prompt: "\\n{}"\n'
# Of each task: the names of lmms-eval's functions, its metrics with what we call them, and its instruction.
TASKS: Final[Mapping[str, tuple[str, str, Mapping[str, tuple[str, str]], str]]] = {
    "mme": (
        *("mme", "mme_process_results"),
        {
            "mme_perception_score": ("mme_aggregate_results", "perception"),
            "mme_cognition_score": ("mme_aggregate_results", "cognition"),
        },
        "Answer the question using a single word or phrase.",
    ),
    "mmbench": (
        *("mmbench", "mmbench_process_results"),
        {"gpt_eval_score": ("mmbench_aggregate_dev_results_static", "Overall, dev")},
        "Answer with the option's letter from the given choices directly.",
    ),
    "seedbench": (
        *("seed", "seed_process_result"),
        {"seed_all": ("seed_aggregation_result", "Overall")},
        "",
    ),
}
FUNCTIONS: Final = """from lmms_eval.tasks.mmbench.en_utils import *
from lmms_eval.tasks.mme.utils import *
from lmms_eval.tasks.seedbench.utils import *
from io import BytesIO
from PIL import Image
def picture_of(doc):
    (cell,) = doc["image"] if isinstance(doc["image"], list) else [doc["image"]]
    return [Image.open(BytesIO(cell["bytes"])).convert("RGB")]
"""


def by_vlmevalkit(url: str, model: str, drawn: Mapping[str, Drawn], python: Path, work: Path) -> Any:
    """Its own run: answers, what it found in each, and its scores."""
    sets = {name: {"tsv": str(drawn[name].tsv)} for name in TASKS}
    server = {"url": url, "model": model, "max_tokens": MAX_TOKENS}
    job = {"folder": str(work / "drawn"), "sets": sets, "server": server}
    return asked(VLMEVALKIT_HARNESS, python, job, work)


def by_lmms_eval(url: str, model: str, drawn: Mapping[str, Drawn], python: Path, work: Path) -> Any:
    """Its own run: answers in the order of the files' rows, and its scores by our names of them."""
    tasks, out = work / "tasks", work / "out"
    for folder in (tasks, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    (tasks / "functions.py").write_text(FUNCTIONS)
    for name, (prefix, process, metrics, instruction) in TASKS.items():
        text = TASK.format(
            name=name,
            path=drawn[name].parquet,
            prefix=prefix,
            process=process,
            metrics="".join(METRIC.format(metric, how) for metric, (how, _) in metrics.items()),
            max_tokens=MAX_TOKENS,
        )
        (tasks / f"{name}.yaml").write_text(text + (POST_PROMPT.format(instruction) if instruction else ""))
    client = f"model={model},base_url={url}/v1,api_key=none,max_retries=1,num_concurrent=8"
    command = [str(python), "-m", "lmms_eval", "--model", "openai", "--model_args", client]
    command += ["--include_path", str(tasks), "--tasks", ",".join(f"{name}_drawn" for name in TASKS)]
    command += ["--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        command, cwd=work, env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    written = [path for path in out.rglob("*_results.json") if path.parent.name != "submissions"]
    if done.returncode or not written:  # it ends with 0 after most errors
        raise RuntimeError(f"lmms-eval failed: {(done.stdout + done.stderr)[-3000:]}")
    (results,) = written
    scores = json.loads(results.read_text())["results"]
    found: dict[str, Any] = {}
    for name, (*_, metrics, _) in TASKS.items():
        (samples,) = out.rglob(f"*_samples_{name}_drawn.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        rows.sort(key=lambda row: int(row["doc_id"]))
        scale = 100 if name == "seedbench" else 1  # the others are points and percent
        totals = {
            ours: scale * scores[f"{name}_drawn"][f"{metric},none"] for metric, (_, ours) in metrics.items()
        }
        found[name] = {"server": {"answers": [row["filtered_resps"] for row in rows], "totals": totals}}
    return found


def reported(harness: Harness, drawn: Mapping[str, Drawn], theirs: Mapping[str, Any]) -> list[str]:
    """A line a benchmark; what differs comes back."""
    differences = []
    for name in TASKS:
        one = drawn[name]
        items = BENCHMARKS[name].read(one.tsv if harness is VLMEVALKIT_HARNESS else one.parquet)
        given = theirs[name]["server"]
        answers = given["answers"]
        rows = given.get("rows", [harness.rules[name](*pair) for pair in zip(items, answers, strict=True)])
        found = compared(name, harness, items, {"server": answers}, {"server": {**given, "rows": rows}})
        print(f"| {BENCHMARKS[name].title} | {harness.distribution.replace('==', ' ')} |", end=" ")
        print(f"{len(answers)} | {found.totals} | {len(found.differences)} |", end=" ")
        print(", ".join(f"{total} {value:.2f}" for total, value in [*given["totals"].items()][:2]), "|")
        differences += [f"{name}: {difference}" for difference in found.differences]
    return differences


def main() -> None:
    arguments = read_command_line((__doc__ or "").splitlines()[0])
    work: Path = arguments.work
    drawn = draw_all(work / "drawn", arguments.seed)
    model = arguments.bundle.resolve().name
    differences = []
    with started(arguments.bundle, ["--no-cache"]) as (url, _):
        print("| benchmark | harness | answers | totals | differ | its scores |\n|" + "---|" * 6)
        for harness, run in ((VLMEVALKIT_HARNESS, by_vlmevalkit), (LMMS_EVAL_HARNESS, by_lmms_eval)):
            theirs = run(url, model, drawn, environment(harness, work), work)
            differences += reported(harness, drawn, theirs)
    print(*differences, sep="\n")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
