"""Let lmms-eval score a server by a task of held-out demo questions, beside ``AceStep.generate`` on the same.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.server_evaluation --work /tmp/server-evaluation demo-bundle

lmms-eval is installed into ``--work``, the first time, with what its class for OpenAI's API imports: most of
its dependencies are for models that it runs itself. One request at a time unless ``--concurrent`` says more:
answers that are written together may differ in a few tokens from those written alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Final

from acestep_gguf import AceStep
from scripts.checks.server_load import MAX_TOKENS, file_of, started
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions

LMMS_EVAL: Final = "lmms-eval==0.7.3"
IMPORTED: Final = (
    *("torch==2.13.0", "transformers", "accelerate", "datasets", "evaluate", "sacrebleu", "openai"),
    *("python-dotenv", "loguru", "tenacity", "pytz", "jinja2", "pyyaml", "pillow", "tqdm", "pydantic"),
    *("pytablewriter", "filelock<3.25"),  # lmms-eval imports filelock._api
)
NAME: Final = "held_out"
TASK: Final = """task: {name}
dataset_path: imagefolder
dataset_kwargs:
  data_dir: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.of
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
PICTURES: Final = """def of(doc):
    return doc["images"]
"""


class LmmsEval:
    """lmms-eval in an environment of its own in ``work``."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._bin = work / "venv/bin"
        if not (self._bin / "lmms-eval").exists():
            venv.create(work / "venv", with_pip=True)
            self._run("pip", "install", "-q", *IMPORTED)
            # last, since its program says that all is there
            self._run("pip", "install", "-q", "--no-deps", LMMS_EVAL)

    def write_task(self, asked: list[HeldOut]) -> None:
        """A task of ``asked``, its pictures as PNG files."""
        task, data = self._work / "task", self._work / "data"
        (data / "test").mkdir(parents=True, exist_ok=True)
        task.mkdir(exist_ok=True)
        rows = []
        for number, one in enumerate(asked):
            names = [f"{number}-{index}.png" for index in range(len(one.images))]
            for name, image in zip(names, one.images, strict=True):
                (data / "test" / name).write_bytes(file_of(image, "PNG"))
            row = {"images_file_names": names, "question": one.question.text, "answer": one.question.answer}
            rows.append(json.dumps(row) + "\n")
        (data / "test/metadata.jsonl").write_text("".join(rows))
        (task / "pictures.py").write_text(PICTURES)
        (task / f"{NAME}.yaml").write_text(TASK.format(name=NAME, data=data, max_tokens=MAX_TOKENS))

    def score(self, url: str, model: str, n_concurrent: int) -> tuple[float, list[str]]:
        """exact_match of the task, and the answers in its order."""
        asked = f"model={model},base_url={url}/v1,api_key=none,max_retries=1,num_concurrent={n_concurrent}"
        out = self._work / "out"
        shutil.rmtree(out, ignore_errors=True)
        self._run(
            *("lmms-eval", "--model", "openai", "--model_args", asked),
            *("--include_path", str(self._work / "task"), "--tasks", NAME),
            *("--output_path", str(out), "--log_samples"),
        )
        (results,) = out.rglob("*_results.json")
        (samples,) = out.rglob(f"*_samples_{NAME}.jsonl")
        rows: list[dict[str, Any]] = [json.loads(line) for line in samples.read_text().splitlines()]
        answers = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        return json.loads(results.read_text())["results"][NAME]["exact_match,none"], answers

    def _run(self, program: str, *options: str) -> None:
        offline = {} if program == "pip" else {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self._work / "hf")}
        done = subprocess.run(
            [str(self._bin / program), *options],
            cwd=self._work,
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {(done.stdout + done.stderr)[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--per-skill", type=int, default=5, help="questions of each kind")
    parser.add_argument("--concurrent", type=int, default=1, help="requests at a time")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    asked = [one for skill in SKILLS for one in held_out_questions(skill, arguments.per_skill)]
    lmms_eval = LmmsEval(work)
    lmms_eval.write_task(asked)
    with AceStep(arguments.bundle) as model:
        alone = [
            model.generate(one.question.text, one.images, max_tokens=MAX_TOKENS).text.strip() for one in asked
        ]
    with started(arguments.bundle, ["--no-cache"]) as (url, _):
        score, answers = lmms_eval.score(url, arguments.bundle.resolve().name, arguments.concurrent)
    right = sum(text == one.question.answer for text, one in zip(alone, asked, strict=True))
    pairs = zip(asked, alone, answers, strict=True)
    differ = [(one, mine, got) for one, mine, got in pairs if mine != got.strip()]
    print(f"{len(asked)} questions: exact_match of lmms-eval {score:.4f}, of AceStep.generate", end=" ")
    print(f"{right / len(asked):.4f}; {len(differ)} answers differ")
    for one, mine, got in differ:
        print(f"       {one.question.text!r}: generate {mine!r}, lmms-eval {got!r}")
    sys.exit(bool(differ) or abs(score - right / len(asked)) > 1e-6)


if __name__ == "__main__":
    main()
