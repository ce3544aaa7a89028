"""Score answers by VLMEvalKit's and lmms-eval's own functions and by ours, and compare row by row.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.score_harnesses demo-bundle

The questions are drawn in the official formats of MME, MMBench, SEED-Bench and MathVista. The answers are
those of the bundle to VLMEvalKit's prompts and to the question alone, and two sheets of adversarial ones.
Each harness gets an environment of its own in ``--work``, the first time. Rows for which it would ask a judge
are counted.
"""

import argparse
import json
import math
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

from platformdirs import user_cache_path

from acestep_gguf import AceStep, AnswerOptions, Question
from acestep_gguf.score import letters, mathvista_rules, yes_no
from acestep_gguf.score.benchmarks import BENCHMARKS, Prompt
from acestep_gguf.score.item import LMMS_EVAL, VLMEVALKIT, Item
from acestep_gguf.score.mme import INSTRUCTION
from acestep_gguf.score.seedbench import likelihood_scores
from scripts.checks.adversarial_answers import answers_of
from scripts.checks.drawn_benchmarks import draw_all

HARNESSES: Final = Path(__file__).parent / "harnesses"
MAX_TOKENS: Final = 16
SAVED_EVERY: Final = 50
TOLERANCE: Final = 1e-9
Answers = dict[str, list[str]]  # by the name of a sheet, in the order of a file's rows


@dataclass(frozen=True)
class Harness:
    """Where it comes from, and what of it is ours under which names.

    ``packages`` are those that its functions import; what runs models is left out, or does nothing.
    """

    name: str
    distribution: str
    packages: tuple[str, ...]
    script: str
    rules: Mapping[str, Callable[[Item, str], object]]


VLMEVALKIT_HARNESS: Final = Harness(
    VLMEVALKIT,
    "ms-vlmeval==0.0.20",
    (
        *(
            "numpy",
            "pandas",
            "openpyxl",
            "requests",
            "tqdm",
            "tabulate",
            "python-dotenv",
            "openai",
            "validators",
        ),
        *(
            "xlsxwriter",
            "termcolor",
            "matplotlib",
            "timeout-decorator",
            "portalocker",
            "rich",
            "sty",
            "json_repair",
        ),
        *("Levenshtein", "scikit-learn", "opencv-python-headless", "num2words", "pillow", "pyyaml"),
        *("huggingface_hub",),
    ),
    "score_by_vlmevalkit.py",
    {
        "mme": lambda _, answer: yes_no.by_vlmevalkit(answer),
        "mmbench": lambda item, answer: letters.by_vlmevalkit(answer, item.choices),
        "seedbench": lambda item, answer: letters.by_vlmevalkit(answer, item.choices),
        "mathvista": mathvista_rules.by_vlmevalkit,
    },
)
LMMS_EVAL_HARNESS: Final = Harness(
    LMMS_EVAL,
    "lmms-eval==0.7.3",
    (
        *("torch==2.13.0", "transformers", "accelerate", "datasets", "evaluate", "sacrebleu", "openai"),
        *("python-dotenv", "loguru", "tenacity", "pytz", "jinja2", "pyyaml", "pillow", "tqdm", "pydantic"),
        *("pytablewriter", "Levenshtein", "filelock<3.25"),  # lmms-eval imports filelock._api
    ),
    "score_by_lmms_eval.py",
    {
        "mme": lambda _, answer: yes_no.by_lmms_eval(answer),
        "mmbench": lambda item, answer: letters.by_lmms_eval(answer, item.choices),
        "seedbench": lambda _, answer: letters.first_character(answer),
        "mathvista": mathvista_rules.by_lmms_eval,
    },
)
RULES: Final = {"mathvista": "{} without its judge"}  # other benchmarks have the harness's name
TOTALS: Final = {"reasoning": "cognition"}  # VLMEvalKit's name


@dataclass
class Comparison:
    """What came of a set with a harness."""

    rows: int = 0
    judged: int = 0
    totals: int = 0
    differences: list[str] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)


def environment(harness: Harness, work: Path) -> Path:
    """The Python of the harness's environment, which is made the first time."""
    folder = work / f"venv-{harness.name}"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *harness.packages], check=True)
        subprocess.run([*pip, "--no-deps", harness.distribution], check=True)
        (folder / "ready").touch()
    return python


class RealAnswers:
    """What the bundle answers, by picture and prompt; kept in a file, for the next time."""

    def __init__(self, bundle: Path, file: Path) -> None:
        self._bundle = bundle
        self._file = file
        self._known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def ask(self, name: str, items: Sequence[Item]) -> None:
        """Each question in the words of ``prompts_of``, several answers at a time."""
        asked = {
            _key(item, prompt(item)): (item, prompt(item))
            for item, prompt in product(items, prompts_of(name).values())
        }
        missing = [key for key in asked if key not in self._known]
        options = AnswerOptions(max_tokens=MAX_TOKENS)
        with AceStep(self._bundle, n_parallel=8, n_threads=1) as model:
            questions = [Question(asked[key][1], [asked[key][0].picture.read()], options) for key in missing]
            for outcome in model.batch(questions):
                assert outcome.answer is not None, outcome.error
                self._known[missing[outcome.index]] = outcome.answer.text
                if len(self._known) % SAVED_EVERY == 0:
                    self._file.write_text(json.dumps(self._known))
        self._file.write_text(json.dumps(self._known))

    def of(self, item: Item, prompt: str) -> str:
        return self._known[_key(item, prompt)]


def prompts_of(name: str) -> dict[str, Prompt]:
    """The usual prompt, and the question alone, which the demo checkpoint has learnt to answer."""
    style, prompt = next(iter(BENCHMARKS[name].prompts.items()))
    return {style: prompt, "alone": lambda item: item.question.removesuffix(INSTRUCTION)}


def _key(item: Item, prompt: str) -> str:
    return blake2b(item.picture.read() + prompt.encode()).hexdigest()


def sheets_of(name: str, items: Sequence[Item], real: RealAnswers) -> Answers:
    sheets = {
        f"real, {style}": [real.of(item, prompt(item)) for item in items]
        for style, prompt in prompts_of(name).items()
    }
    return sheets | {f"adversarial {n + 1}": answers_of(name, items, n) for n in range(2)}


def asked(harness: Harness, python: Path, job: Mapping[str, Any], work: Path) -> Any:
    """What the harness's functions make of a job."""
    job_file, result = work / f"job-{harness.name}.json", work / f"result-{harness.name}.json"
    job_file.write_text(json.dumps(job))
    command = [str(python), str(HARNESSES / harness.script), str(job_file), str(result)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{harness.script} failed: {(done.stdout + done.stderr)[-3000:]}")
    return json.loads(result.read_text())


def compared(
    name: str, harness: Harness, items: Sequence[Item], sheets: Answers, theirs: Mapping[str, Any]
) -> Comparison:
    """Rows and totals of every sheet; rows for which a judge would be asked have to be the same, too."""
    found = Comparison()
    for sheet, answers in sheets.items():
        given = theirs[sheet]
        published = given.get("as published", given["rows"])
        for item, answer, raw, other in zip(items, answers, given["rows"], published, strict=True):
            mine, them = harness.rules[name](item, answer), raw
            if name != "mathvista":  # there it is whether the answer is right
                mine, them = _found(mine), _found(raw)
            found.rows += 1
            found.judged += name == "mathvista" and raw is None
            if mine != them:
                found.differences.append(f"{sheet}, {item.index}, {answer!r}: {them} for {mine}")
            if raw != other:
                found.explained.append(f"{sheet}, {item.index}, {answer!r}: {other} by a precision of 1.0")
        mine_of = _totals(name, harness, items, answers, given)
        for total, value in given["totals"].items():
            found.totals += 1
            mine_value = mine_of.get(
                TOTALS.get(total, total), math.nan
            )  # as VLMEvalKit writes what is not there
            both_absent = math.isnan(mine_value) and math.isnan(value)
            if not (both_absent or math.isclose(mine_value, value, abs_tol=TOLERANCE)):
                found.differences.append(f"{sheet}, {total}: {value} for {mine_value}")
    return found


def _found(value: Any) -> Any:
    """What a rule found, however a harness writes it; nothing is None."""
    return value.capitalize() if value and value not in {"Unknown", "other"} else None


def _totals(
    name: str, harness: Harness, items: Sequence[Item], answers: Sequence[str], theirs: Mapping[str, Any]
) -> dict[str, float]:
    """Our scores by the harness's rule; where its total is of rows without a judge, so is ours."""
    rule = RULES.get(name, "{}").format(harness.name)
    kept = [*items]
    if "of those found" in theirs["totals"]:
        kept = [item for item, raw in zip(items, theirs["rows"], strict=True) if raw is not None]
    by_index = {item.index: answer for item, answer in zip(items, answers, strict=True)}
    scores = {one.name: one.value for one in BENCHMARKS[name].score(kept, by_index) if one.rule == rule}
    return scores | {"of those found": scores["Overall"]} if "Overall" in scores else scores


def likelihoods_compared(items: Sequence[Item], losses: list[list[float]], theirs: list[bool]) -> Comparison:
    """Which choice has the least mean loss, of losses that are drawn, some of them equal."""
    found = Comparison(rows=len(items), totals=1)
    for item, four, right in zip(items, losses, theirs, strict=True):
        means = {item.index: [-loss for loss in four]}
        mine = likelihood_scores([item], means, means)[-1].value == 100
        if mine != right:
            found.differences.append(f"{item.index}: {four}: lmms-eval {right}, ours {mine}")
    all_means = {item.index: [-loss for loss in four] for item, four in zip(items, losses, strict=True)}
    total = next(
        one.value for one in likelihood_scores(items, all_means, all_means) if one.rule == "likelihood, mean"
    )
    if abs(total - 100 * sum(theirs) / len(theirs)) > TOLERANCE:
        found.differences.append(f"total: lmms-eval {100 * sum(theirs) / len(theirs)}, ours {total}")
    return found


def read_command_line(description: str) -> argparse.Namespace:
    """``bundle``, ``work``, a folder that is there, and ``seed``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, default=user_cache_path("acestep-gguf-bench") / "harnesses")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> None:
    arguments = read_command_line((__doc__ or "").splitlines()[0])
    work: Path = arguments.work
    drawn = draw_all(work / "drawn", arguments.seed)
    forms = {
        VLMEVALKIT: {name: BENCHMARKS[name].read(one.tsv) for name, one in drawn.items()},
        LMMS_EVAL: {name: BENCHMARKS[name].read(one.parquet) for name, one in drawn.items()},
    }
    real = RealAnswers(arguments.bundle, work / "answers.json")
    for name, items in (pair for sets in forms.values() for pair in sets.items()):
        real.ask(name, items)
    rng = Random(arguments.seed)
    print("| benchmark | harness | rows | for a judge | totals | differ | explained |\n|" + "---|" * 7)
    unexplained: list[str] = []
    for harness in (VLMEVALKIT_HARNESS, LMMS_EVAL_HARNESS):
        items_of = forms[harness.name]
        sheets = {name: sheets_of(name, items, real) for name, items in items_of.items()}
        job: dict[str, Any] = {"folder": str(work / "drawn"), "sets": {}}
        for name, one in drawn.items():
            job["sets"][name] = {"tsv": str(one.tsv), "parquet": str(one.parquet), "sheets": sheets[name]}
        losses = [[rng.randint(1, 6) / 2 for _ in range(4)] for _ in items_of["seedbench"]]
        job["sets"]["seedbench"]["losses"] = losses
        theirs = asked(harness, environment(harness, work), job, work)
        comparisons = {
            BENCHMARKS[name].title: compared(name, harness, items, sheets[name], theirs[name])
            for name, items in items_of.items()
        }
        if "seedbench by likelihood" in theirs:
            comparisons["SEED-Bench by likelihood"] = likelihoods_compared(
                items_of["seedbench"], losses, theirs["seedbench by likelihood"]
            )
        for title, found in comparisons.items():
            counts = (found.rows, found.judged, found.totals, len(found.differences), len(found.explained))
            print(f"| {title} | {harness.distribution.replace('==', ' ')} | {' | '.join(map(str, counts))} |")
            unexplained += [f"{title}: {difference}" for difference in found.differences]
    print(*unexplained, sep="\n")
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
