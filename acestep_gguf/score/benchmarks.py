"""The four benchmarks that the card quotes, by the names that the command line knows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from acestep_gguf.score import mathvista, mmbench, mme, seedbench
from acestep_gguf.score.item import LMMS_EVAL, OFFICIAL, VLMEVALKIT, Item, Score

Prompt = Callable[[Item], str]
Answers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark: how its files are read, how a model is asked, how answers are scored.

    Attributes:
        name: "mmbench".
        title: "MMBench".
        read: the items of a file or folder, whichever of the official forms it has; raises BenchmarkError.
        prompts: by whose words to ask with: "vlmevalkit", "lmms-eval", "official"; first the usual.
        likelihood_prompts: the same for what a choice's text is put after, where likelihoods count.
        right_by_rule: whether an answer is right by each rule, for itself: without the others of its group.
        score: scores of answers by their items' index, by every rule that there is. Each item needs an
            answer; items whose answer is not published are left out. Raises BenchmarkError.
        card: what the card claims of the described model: points of MME, else percent.
        limits: with which published figures the scores may be compared, and with which not.
    """

    name: str
    title: str
    read: Callable[[Path], list[Item]]
    prompts: Mapping[str, Prompt]
    likelihood_prompts: Mapping[str, Prompt] = field(default_factory=dict)
    right_by_rule: Callable[[Item, str], Mapping[str, bool]]
    score: Callable[[Sequence[Item], Answers], tuple[Score, ...]]
    card: float
    limits: str


BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="mme",
            title="MME",
            read=mme.read,
            prompts={
                VLMEVALKIT: mme.vlmevalkit_prompt,
                LMMS_EVAL: mme.lmms_eval_prompt,
                OFFICIAL: mme.vlmevalkit_prompt,
            },
            right_by_rule=mme.right_by_rule,
            score=mme.score,
            card=2158.9,
            limits="The card does not say by which rule; all categories together have 2,800 points.",
        ),
        Benchmark(
            name="mmbench",
            title="MMBench",
            read=mmbench.read,
            prompts={VLMEVALKIT: mmbench.vlmevalkit_prompt, LMMS_EVAL: mmbench.lmms_eval_prompt},
            right_by_rule=mmbench.right_by_rule,
            score=mmbench.score,
            card=82.4,
            limits="Compare with figures by exact matching; those with a judge, most of them, are higher.",
        ),
        Benchmark(
            name="seedbench",
            title="SEED-Bench",
            read=seedbench.read,
            prompts={VLMEVALKIT: mmbench.vlmevalkit_prompt, LMMS_EVAL: seedbench.lmms_eval_prompt},
            likelihood_prompts={
                OFFICIAL: seedbench.official_likelihood_prompt,
                LMMS_EVAL: seedbench.lmms_eval_likelihood_prompt,
            },
            right_by_rule=seedbench.right_by_rule,
            score=seedbench.score,
            card=75.8,
            limits="Of pictures only, as SEEDBench_IMG; figures that count videos, too, are others.",
        ),
        Benchmark(
            name="mathvista",
            title="MathVista",
            read=mathvista.read,
            prompts={VLMEVALKIT: mathvista.query_prompt, LMMS_EVAL: mathvista.lmms_eval_prompt},
            right_by_rule=mathvista.right_by_rule,
            score=mathvista.score,
            card=65.3,
            limits="By rules, not comparable with published figures: there a GPT reads the answers.",
        ),
    )
}
