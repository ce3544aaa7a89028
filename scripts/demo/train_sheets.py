"""Teach the demo checkpoint to read sheets of pictures as a LLaVA-NeXT, on a CPU, in a fixed time.

    python -m scripts.demo.train_sheets --out runs/sheets --minutes 40 --export tests/checkpoints/sheets
    python -m scripts.demo.train_sheets --out runs/sheets --minutes 40 --resume

The vision tower stays as it is: it knows pictures of a tile's size. Projector, `image_newline` and
decoder learn what tiles are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    Qwen2Tokenizer,
)

from scripts.demo.checkpoint import (
    build_tiled_processor,
    export,
    image_features,
    plain_copy,
    tiled_model,
)
from scripts.demo.evaluate import CheckpointAnswers, score
from scripts.demo.labels import IGNORE
from scripts.demo.questions import SKILLS
from scripts.demo.sheet_batches import POOL, SheetBatch, SheetBatches
from scripts.demo.sheets import SHEET_SKILLS
from scripts.demo.training_run import TrainingRun, cosine, speed_up, visible

DEMO = Path("acestep_gguf/demo")
WARM_UP_SHARE = 0.02
PARTS = 1  # batches to a step
CHECKED_PER_SKILL = 40


class SheetTrainer(TrainingRun[SheetBatch]):
    check_every = 300.0

    def __init__(self, out: Path, seconds: float, rate: float, resume: bool) -> None:
        torch.manual_seed(1)
        demo = LlavaForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
        self.model: LlavaNextForConditionalGeneration = tiled_model(demo)
        self.model.model.vision_tower.requires_grad_(False)
        self.processor: LlavaNextProcessor = build_tiled_processor(Qwen2Tokenizer.from_pretrained(DEMO))
        super().__init__(out, seconds, rate, {"model": self.model})
        if resume:
            self.load()

    def loss(self, batch: SheetBatch) -> dict[str, Tensor]:
        llava = self.model.model
        with torch.no_grad():
            features = image_features(self.model, batch.crops)
        pictures = llava.multi_modal_projector(features).split(batch.n_crops)
        packed, _ = llava.pack_image_features(
            pictures, batch.sizes, "default", image_newline=llava.image_newline
        )
        embeds = llava.language_model.embed_tokens(batch.input_ids)
        at_image = batch.input_ids == self.model.config.image_token_id
        embeds = embeds.masked_scatter(at_image[..., None], torch.cat(packed).to(embeds.dtype))
        hidden = llava.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": visible(batch.groups, embeds.dtype)},
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        answered = batch.labels[:, 1:] != IGNORE
        logits = self.model.lm_head(hidden[:, :-1][answered])
        return {"answers": cross_entropy(logits.float(), batch.labels[:, 1:][answered])}

    def schedule(self) -> float:
        return min(1.0, 0.02 + self.share / WARM_UP_SHARE) * cosine(self.share)

    def check(self) -> None:
        """A small held-out accuracy per skill."""
        answers = CheckpointAnswers(plain_copy(self.model), self.processor)
        tallies = score(answers, CHECKED_PER_SKILL, (*SHEET_SKILLS, *SKILLS))
        self.log(held_out={skill: round(tally.share, 3) for skill, tally in tallies.items()})

    def run(self) -> None:
        speed_up(self.model)
        self.train(1.0, self.batches(), PARTS)
        self.save()
        self.check()

    def batches(self) -> Iterator[SheetBatch]:
        source = SheetBatches(self.processor, -(-self.batches_seen["chats"] // POOL))
        return iter(DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and the log")
    parser.add_argument("--minutes", type=float, default=40, help="time to train for, in all")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.5, help="times the learning rates")
    parser.add_argument("--export", type=Path, help="write the checkpoint here")
    parser.add_argument("--no-training", action="store_true", help="export the state as it is")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    resume = arguments.resume or arguments.no_training
    trainer = SheetTrainer(arguments.out, 60 * arguments.minutes, arguments.rate, resume)
    if not arguments.no_training:
        trainer.run()
    if arguments.export:
        export(trainer.model, trainer.processor, arguments.export)


if __name__ == "__main__":
    main()
