"""Score answers by VLMEvalKit's own functions; run by score_harnesses.py in VLMEvalKit's environment.

    python score_by_vlmevalkit.py job.json result.json

Where the job names a server, its questions are put to it first, as a run of VLMEvalKit does.
Its packages for running models are not installed: importing them gives names that do nothing.
"""

import json
import os
import sys
import types
from abc import ABCMeta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ABSENT = (
    *("torch", "torchvision", "transformers", "accelerate", "datasets", "decord", "imageio", "jieba"),
    *("math_verify", "networkx", "nltk", "pylatexenc", "qwen_vl_utils", "regex", "rouge", "sympy"),
    "vlmeval.vlm",
)
JUDGE_NEEDED = {"res": "", "log": "All 5 retries failed.\n"}  # what MathVista_auxeval returns without one


class _AbsentType(ABCMeta):
    """A class that may be inherited from, called and used as a decorator, and so may what is in it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(name)


class _Absent(metaclass=_AbsentType):
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, given: Any = None, *_: Any, **__: Any) -> Any:
        return given


def _absent(name: str) -> Any:
    return _AbsentType(name, (_Absent,), {})


class _AbsentModule(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 (of a package)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(name)


class _AbsentFinder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in ABSENT):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ["LMUData"] = job["folder"]  # noqa: SIM112 (its own spelling)
    sys.meta_path.insert(0, _AbsentFinder())
    if "server" in job:
        for one in job["sets"].values():
            one["sheets"] = {"server": _asked(Path(one["tsv"]), **job["server"])}
    scorers = {"mme": _mme, "mmbench": _options, "seedbench": _options, "mathvista": _mathvista}
    found = {
        name: {
            sheet: {"answers": answers, **scorers[name](Path(one["tsv"]), answers)}
            for sheet, answers in one["sheets"].items()
        }
        for name, one in job["sets"].items()
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


def _asked(tsv: Path, url: str, model: str, max_tokens: int) -> list[str]:
    """A server's answers, by VLMEvalKit's client and prompts; pictures go as JPEG, as it sends them."""
    from vlmeval.api.gpt import GPT4V
    from vlmeval.inference import infer_data_api

    client = GPT4V(
        model=model, api_base=f"{url}/v1/chat/completions", key="none", max_tokens=max_tokens, retry=1
    )
    for old in tsv.parent.glob(f"{model}_{tsv.stem}_*"):
        old.unlink()
    dataset = _dataset(tsv)
    answers = infer_data_api(client, str(tsv.parent), model, dataset)
    return [answers[index] for index in dataset.data["index"]]


def _dataset(tsv: Path) -> Any:
    from vlmeval.dataset.image_mcq import CustomMCQDataset
    from vlmeval.dataset.image_vqa import MathVista
    from vlmeval.dataset.image_yorn import ImageYORNDataset

    kinds = {"MME": ImageYORNDataset, "MathVista": MathVista}
    return next((kind for name, kind in kinds.items() if tsv.stem.startswith(name)), CustomMCQDataset)(
        tsv.stem
    )


def _predicted(dataset: Any, answers: list[str], path: Path) -> tuple[Any, str]:
    """The data set's rows with answers, and a file of them such as a run leaves behind.

    Pickled: in a table an answer such as "None" or "1.0" is another one when it is read again.
    """
    data = dataset.data.copy()
    data["prediction"] = answers
    for old in path.parent.glob(f"drawn_{path.stem}*"):
        old.unlink()
    file = str(path.parent / f"drawn_{path.stem}.pkl")
    data.drop(columns="image").to_pickle(file)
    return data, file


def _mme(tsv: Path, answers: list[str]) -> Any:
    from vlmeval.dataset.utils.yorn import YOrN_Extraction

    dataset = _dataset(tsv)
    _, file = _predicted(dataset, answers, tsv)
    rows = [YOrN_Extraction(answer) for answer in answers]
    scores = dataset.evaluate(file, model="exact_matching").iloc[0].to_dict()
    return {"rows": rows, "totals": {name: float(value) for name, value in scores.items()}}


def _options(tsv: Path, answers: list[str]) -> Any:
    from vlmeval.dataset.utils.multiple_choice import MMB_abbrs, prefetch_answer

    dataset = _dataset(tsv)
    data, file = _predicted(dataset, answers, tsv)
    rows = [prefetch_answer(data.iloc[place]) for place in range(len(data))]
    names = {short: name for name, short in MMB_abbrs.items()}
    scores = dataset.evaluate(file, model="exact_matching").to_dict("records")
    totals = {
        (f"{names.get(name, name)}, {row['split']}" if row["split"] != "none" else name): 100 * value
        for row in scores
        for name, value in row.items()
        if name != "split"
    }
    return {"rows": rows, "totals": totals}


def _mathvista(tsv: Path, answers: list[str]) -> Any:
    """Row by row, and by MathVista_acc with nothing found where a judge would be asked."""
    from vlmeval.dataset.utils.mathvista import MathVista_acc, post_check

    dataset = _dataset(tsv)
    data, file = _predicted(dataset, answers, tsv)
    rows: list[bool | None] = []
    judged = []
    for place in range(len(data)):
        line = data.iloc[place].copy()
        found = post_check(line, prefetch=True)
        given = {"res": found, "log": "Prefetch succeed"} if found else JUDGE_NEEDED
        judged.append(given)
        line["res"] = given["res"]
        rows.append(bool(post_check(line, prefetch=False)) if found else None)
    for name in ("res", "log"):
        data[name] = [one[name] for one in judged]
    data.drop(columns="image").to_pickle(file)
    table = MathVista_acc(file).to_dict("records")
    return {"rows": rows, "totals": {row["Task&Skill"]: row["acc"] for row in table}}


if __name__ == "__main__":
    main()
