"""Score answers by lmms-eval's own functions; run by score_harnesses.py in lmms-eval's environment.

python score_by_lmms_eval.py job.json result.json
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ["OPENAI_API_KEY"] = (
    "none"  # MathVista's judge is made when its module is imported, and never asked
)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    scorers = {"mme": _mme, "mmbench": _mmbench, "seedbench": _seedbench, "mathvista": _mathvista}
    found: dict[str, Any] = {}
    for name, one in job["sets"].items():
        docs = _docs(Path(one["parquet"]))
        found[name] = {sheet: scorers[name](docs, answers) for sheet, answers in one["sheets"].items()}
        if "losses" in one:
            found[f"{name} by likelihood"] = _by_likelihood(docs, one["losses"])
    Path(sys.argv[2]).write_text(json.dumps(found))


def _docs(path: Path) -> list[Any]:
    """The rows as a task of lmms-eval gets them, but for the pixels."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files={"test": str(path)}, split="test")
    return [*data.remove_columns([name for name in ("image", "decoded_image") if name in data.column_names])]


def _mme(docs: list[Any], answers: list[str]) -> Any:
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results, parse_pred_ans

    totals = {}
    for name, metric in (("perception", "mme_perception_score"), ("cognition", "mme_cognition_score")):
        results = [mme_process_results(doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]
        totals[name] = mme_aggregate_results([result[metric] for result in results if metric in result])
    return {"rows": [parse_pred_ans(answer) for answer in answers], "totals": totals}


def _mmbench(docs: list[Any], answers: list[str]) -> Any:
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator, mmbench_process_results

    results = [
        mmbench_process_results(doc, [answer])["gpt_eval_score"]
        for doc, answer in zip(docs, answers, strict=True)
    ]
    rows = []
    for result in results:  # as eval_sub_data does for each row of a question
        choices = mmbench_evaluator.build_choices(result)
        letter = mmbench_evaluator.prefetch_answer(result)
        rows.append(letter or extract_mcq_answer(result["prediction"], choices=sorted(choices)))
    overall, by_category, by_ability = mmbench_evaluator.eval_result(results, eval_method="static")
    shares = {"Overall": overall, **by_category, **by_ability}
    return {"rows": rows, "totals": {f"{name}, dev": 100 * share for name, share in shares.items()}}


def _seedbench(docs: list[Any], answers: list[str]) -> Any:
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result

    results = [
        seed_process_result(doc, [answer])["seed_all"] for doc, answer in zip(docs, answers, strict=True)
    ]
    total = 100 * seed_aggregation_result(results)
    return {"rows": [result["pred"].upper() for result in results], "totals": {"Overall": total}}


def _by_likelihood(docs: list[Any], losses: list[list[float]]) -> list[bool]:
    """What a task with seedbench_ppl's configuration makes of the choices' losses."""
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.tasks.seedbench.utils import seed_doc_to_choice, seed_doc_to_mc_target

    task: Any = types.SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        _metric_fn_list={"acc": None},
        multiple_input=0,
        multiple_target=0,
        doc_to_choice=seed_doc_to_choice,
        doc_to_target=seed_doc_to_mc_target,
        config=types.SimpleNamespace(process_results=None),
    )
    return [
        bool(ConfigurableTask.process_results(task, doc, [(loss, False) for loss in four])["acc"])
        for doc, four in zip(docs, losses, strict=True)
    ]


def _mathvista(docs: list[Any], answers: list[str]) -> Any:
    """Each row by a judge that is only noted, with the precision as it is and as a whole number."""
    from lmms_eval.tasks.mathvista.utils import mathvista_evaluator, mathvista_process_results

    asked: list[str] = []

    def noted(prompt: str, **_: object) -> str:
        asked.append(prompt)
        return ""

    mathvista_evaluator.get_chat_response = noted
    rows: list[bool | None] = []
    as_published: list[bool | None] = []
    for doc, answer in zip(docs, answers, strict=True):
        whole = doc | {"precision": None if doc["precision"] is None else int(doc["precision"])}
        for given, marks in ((doc, as_published), (whole, rows)):
            asked.clear()
            result = mathvista_process_results(given, [answer])["llm_as_judge_eval"]
            marks.append(None if asked else bool(result["true_false"]))
    found = [mark for mark in rows if mark is not None]
    return {
        "rows": rows,
        "as published": as_published,
        "totals": {"of those found": 100 * sum(found) / len(found) if found else 0.0},
    }


if __name__ == "__main__":
    main()
