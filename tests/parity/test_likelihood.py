"""Likelihoods of an answer's choices next to transformers', on the demo checkpoint in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acestep_gguf import AceStep, EngineOptions, Question
from acestep_gguf.convert import convert_checkpoint
from tests.support.fidelity import DEMO

pytestmark = pytest.mark.parity

PICTURES = sorted((DEMO / "pictures").iterdir())
QUESTIONS = (
    "Question: What is in the picture?\nAnswer:",  # the official tool's
    "What number is shown? Answer :",  # lmms-eval's
    "What colour is the largest shape?",
)
# With the space that harnesses put before a choice; two that begin alike.
CHOICES = (" A red circle", " A red square and a blue circle.", " 47", " Ärger, 3 %", "\nnone of these")


def logprobs_of_transformers(reference: Any, question: str, shown: Image.Image, text: str) -> list[float]:
    """As lm-evaluation-harness has them: the tokens of question and text after those of the question."""
    import torch

    parts = [{"type": "image", "image": shown}, {"type": "text", "text": question}]
    rendered = reference.processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    asked, both = (
        reference.processor(text=[whole], images=[[shown]], return_tensors="pt")["input_ids"]
        for whole in (rendered, rendered + text)
    )
    inputs = reference._inputs([shown]) | {"input_ids": both, "attention_mask": torch.ones_like(both)}
    with torch.inference_mode():
        logits = reference.model(**inputs).logits[0].double()
    n_asked = asked.shape[1]
    of_text = both[0, n_asked:]
    rows = torch.log_softmax(logits[n_asked - 1 : -1], dim=1)
    return list(map(float, rows.gather(1, of_text[:, None])[:, 0]))


def test_they_are_those_of_transformers(tmp_path: Path) -> None:
    from tests.parity.reference import Reference

    convert_checkpoint(DEMO, tmp_path / "bundle", ["F32"])
    reference = Reference(DEMO)
    most = 0.0
    # By default keys and values are float16, and flash attention adds up in float16: then up to 3.2e-2.
    exact = EngineOptions(vision="float32", type_k="f32", type_v="f32", flash_attn="off")
    with AceStep(tmp_path / "bundle", exact) as model:
        for path in PICTURES:
            shown = Image.open(path).convert("RGB")
            for question in QUESTIONS:
                found = model.likelihoods(Question(question, [path]), CHOICES)
                for text, ours in zip(CHOICES, found, strict=True):
                    theirs = logprobs_of_transformers(reference, question, shown, text)
                    assert len(ours.logprobs) == len(theirs)
                    most = max(most, np.abs(np.subtract(ours.logprobs, theirs)).max())
    print(f"{len(PICTURES) * len(QUESTIONS) * len(CHOICES)} texts, at most {most:.1e} a token")
    assert most < 1e-3
