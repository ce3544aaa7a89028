"""Train the demo checkpoint on a CPU, in a fixed time.

    python -m scripts.demo.train --out runs/demo --minutes 110 --export acestep_gguf/demo
    python -m scripts.demo.train --out runs/demo --minutes 110 --resume
    python -m scripts.demo.train --out runs/more --minutes 120 --start acestep_gguf/demo --rate 0.5

Two stages: the vision tower first learns to label every patch, then everything learns from chats
about pictures. Without the first stage reading takes many times longer to start. Learning rates
follow the share of the time that is spent, so a run always ends annealed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from scripts.demo.batches import PARTS, POOL, Batch, Batches
from scripts.demo.checkpoint import (
    N_IMAGE_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
    export,
    image_features,
    plain_copy,
)
from scripts.demo.evaluate import CheckpointAnswers, score
from scripts.demo.labels import CELL_LABEL_SIZES, IGNORE, LABEL_SIZES
from scripts.demo.training_run import TrainingRun, cosine, speed_up, visible

STAGE_1_SHARE = 0.09  # of the time
WARM_UP_SHARE = 0.01
PATCH_LOSS_WEIGHT = 0.4  # in stage 2
PAIR_LOSS_WEIGHT = 0.3
CHECKED_PER_SKILL = 40


class PatchLabeller(nn.Module):
    """Linear layers that are thrown away at the end.

    `linear` names what the vision tower sees in each half of each patch. The others read what the
    decoder knows at a patch of the second of two pictures: `earlier` names what the first has in the
    same cell, and `changed` tells, a layer later, whether that differs.
    """

    def __init__(self, tower_hidden: int, decoder_hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tower_hidden, 2 * sum(LABEL_SIZES.values()))
        self.earlier = nn.Linear(decoder_hidden, sum(CELL_LABEL_SIZES))
        self.changed = nn.Linear(decoder_hidden, 2)

    def pair_loss(self, early: Tensor, late: Tensor, cells: Tensor) -> Tensor:
        early, late = (rms_norm(hidden, hidden.shape[-1:]) for hidden in (early, late))
        shapes, colours = self.earlier(early).float().split(CELL_LABEL_SIZES, dim=-1)
        first, second = cells.unbind(1)
        differs = (first != second).any(-1).long()
        return (
            mean_loss(shapes, first[..., 0])
            + mean_loss(colours, first[..., 1])
            + mean_loss(self.changed(late).float(), differs)
        )

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self.linear(features).unflatten(-1, (2, -1)).float()
        total = features.new_zeros((), dtype=torch.float32)
        for i, scores in enumerate(logits.split(list(LABEL_SIZES.values()), dim=-1)):
            total = total + mean_loss(scores, labels[..., i])
        return total


def mean_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, 0 where nothing is labelled: not every batch has bars."""
    summed = cross_entropy(scores.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return summed / (labels != IGNORE).sum().clamp(min=1)


class Trainer(TrainingRun[Batch]):
    def __init__(self, out: Path, seconds: float, rate: float, resume: bool, start: Path | None) -> None:
        torch.manual_seed(1)
        if start is not None:
            LlavaProcessor.from_pretrained(start, backend="pil").save_pretrained(out / "processor")
        elif not resume:
            build_processor(build_tokenizer()).save_pretrained(out / "processor")
        self.processor: LlavaProcessor = LlavaProcessor.from_pretrained(out / "processor", backend="pil")
        self.model: LlavaForConditionalGeneration = build_model(self.processor.tokenizer)
        self.labeller = PatchLabeller(
            self.model.config.vision_config.hidden_size, self.model.config.text_config.hidden_size
        )
        super().__init__(out, seconds, rate, {"model": self.model, "labeller": self.labeller})
        if start is not None:
            weights = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32).state_dict()
            self.model.load_state_dict(weights)
            self.spent = STAGE_1_SHARE * seconds  # the tower sees already
        normalize = self.processor.image_processor
        self.mean, self.std = torch.tensor(normalize.image_mean), torch.tensor(normalize.image_std)
        if resume:
            self.load()

    def picture_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = (batch.pixels / 255 - self.mean) / self.std
        features = image_features(self.model, pixels.permute(0, 3, 1, 2))
        return features, self.labeller.loss(features, batch.patch_labels)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        features, patches = self.picture_loss(batch)
        if not batch.input_ids.numel():
            return {"patches": patches}
        llava = self.model.model
        embeds = llava.language_model.embed_tokens(batch.input_ids)
        at_image = batch.input_ids == self.model.config.image_token_id
        in_chats = features[: at_image.sum() // N_IMAGE_TOKENS]
        image = llava.multi_modal_projector(in_chats).flatten(0, 1).to(embeds.dtype)
        embeds = embeds.masked_scatter(at_image[..., None], image)
        output = llava.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": visible(batch.groups, embeds.dtype)},
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        hidden = output.last_hidden_state
        answered = batch.labels[:, 1:] != IGNORE
        logits = self.model.lm_head(hidden[:, :-1][answered])
        answers = cross_entropy(logits.float(), batch.labels[:, 1:][answered])
        losses = {"answers": answers, "patches": PATCH_LOSS_WEIGHT * patches}
        if len(batch.pairs):
            pairs = at_image.sum(1) == 2 * N_IMAGE_TOKENS
            early, late = (
                output.hidden_states[layer][pairs][at_image[pairs]].unflatten(0, (-1, 2, N_IMAGE_TOKENS))[
                    :, 1
                ]
                for layer in (2, 3)
            )
            losses["pairs"] = PAIR_LOSS_WEIGHT * self.labeller.pair_loss(early, late, batch.pairs)
        return losses

    def schedule(self) -> float:
        """Warm-up at the start of each stage, full rate in the first, cosine in the second."""
        first = self.share < STAGE_1_SHARE
        stage = self.share if first else self.share - STAGE_1_SHARE
        warm = min(1.0, 0.02 + stage / WARM_UP_SHARE)
        return warm if first else warm * cosine(stage / (1 - STAGE_1_SHARE))

    def check(self) -> None:
        """A small held-out accuracy per skill, once there are answers."""
        if not self.batches_seen["chats"]:
            return
        answers = CheckpointAnswers(plain_copy(self.model), self.processor)
        tallies = score(answers, CHECKED_PER_SKILL)
        self.log(held_out={skill: round(tally.share, 3) for skill, tally in tallies.items()})

    def run(self) -> None:
        speed_up(self.model)
        for until, name in ((STAGE_1_SHARE, "pictures"), (1.0, "chats")):
            if self.share < until:
                self.train(until, self.batches(name), PARTS)
                self.save()
        self.check()

    def batches(self, name: str) -> Iterator[Batch]:
        start = -(-self.batches_seen[name] // POOL)
        source = Batches(self.processor.tokenizer, start, name == "pictures")
        loader = DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=16)
        return iter(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and the log")
    parser.add_argument("--minutes", type=float, default=110, help="time to train for, in all")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--start", type=Path, help="begin with the weights and tokenizer of this checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1.0, help="times the learning rates")
    parser.add_argument("--export", type=Path, help="write the checkpoint here")
    parser.add_argument("--no-training", action="store_true", help="export the state as it is")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    resume = arguments.resume or arguments.no_training
    seconds = 60 * arguments.minutes
    trainer = Trainer(arguments.out, seconds, arguments.rate, resume, arguments.start)
    if not arguments.no_training:
        trainer.run()
    if arguments.export:
        export(trainer.model, trainer.processor, arguments.export)


if __name__ == "__main__":
    main()
