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
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

STAGE_1_SHARE = 0.09  # of the time
WARM_UP_SHARE = 0.01
PEAK_LR = {"muon": 4e-3, "adamw": 1e-3}
PATCH_LOSS_WEIGHT = 0.4  # in stage 2
PAIR_LOSS_WEIGHT = 0.3
SAVE_EVERY, CHECK_EVERY = 300.0, 600.0  # seconds
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


class Trainer:
    def __init__(self, out: Path, seconds: float, rate: float, resume: bool, start: Path | None) -> None:
        torch.manual_seed(1)
        self.out = out
        self.seconds = seconds
        self.rate = rate
        self.spent = 0.0  # seconds of training so far, over all runs
        self.batches_seen = {"pictures": 0, "chats": 0}
        if start is not None:
            LlavaProcessor.from_pretrained(start, backend="pil").save_pretrained(out / "processor")
        elif not resume:
            build_processor(build_tokenizer()).save_pretrained(out / "processor")
        self.processor: LlavaProcessor = LlavaProcessor.from_pretrained(out / "processor", backend="pil")
        self.model: LlavaForConditionalGeneration = build_model(self.processor.tokenizer)
        if start is not None:
            weights = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32).state_dict()
            self.model.load_state_dict(weights)
            self.spent = STAGE_1_SHARE * seconds  # the tower sees already
        self.labeller = PatchLabeller(
            self.model.config.vision_config.hidden_size, self.model.config.text_config.hidden_size
        )
        normalize = self.processor.image_processor
        self.mean, self.std = torch.tensor(normalize.image_mean), torch.tensor(normalize.image_std)
        self.optimizers = _optimizers(self.model, self.labeller)
        if resume:
            self.load()

    @property
    def share(self) -> float:
        return self.spent / self.seconds

    # ---- one step ----

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

    def step(self, parts: list[Batch]) -> dict[str, float]:
        started = time.monotonic()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.rate * schedule(self.share)
            optimizer.zero_grad(set_to_none=True)
        means: defaultdict[str, float] = defaultdict(float)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.loss(part)
            torch.autograd.backward(torch.stack(list(losses.values())).sum() / len(parts))
            for name, value in losses.items():
                means[name] += value.item() / len(parts)
            self.batches_seen["chats" if part.input_ids.numel() else "pictures"] += 1
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.spent += time.monotonic() - started
        return means

    # ---- state ----

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "labeller": self.labeller.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent,
            "batches": self.batches_seen,
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")

    def load(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.labeller.load_state_dict(state["labeller"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.spent, self.batches_seen = state["spent"], state["batches"]

    def log(self, **entry: Any) -> None:
        entry = {"minutes": round(self.spent / 60, 2), **self.batches_seen, **entry}
        print(json.dumps(entry), flush=True)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")

    # ---- the run ----

    def train(self, until: float, batches: Iterator[Batch]) -> None:
        recent: list[dict[str, float]] = []
        saved = checked = logged = time.monotonic()
        while self.share < until:
            recent.append(self.step([next(batches) for _ in range(PARTS)]))
            now = time.monotonic()
            if now - logged > 30:
                means = {
                    name: round(sum(losses[name] for losses in recent) / len(recent), 4) for name in recent[0]
                }
                self.log(**means, steps_a_second=round(len(recent) / (now - logged), 3))
                recent, logged = [], now
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
            if self.batches_seen["chats"] and now - checked > CHECK_EVERY:
                self.check()
                checked = logged = time.monotonic()

    def check(self) -> None:
        """A small held-out accuracy per skill."""
        answers = CheckpointAnswers(plain_copy(self.model), self.processor)
        tallies = score(answers, CHECKED_PER_SKILL)
        self.log(held_out={skill: round(tally.share, 3) for skill, tally in tallies.items()})

    def run(self) -> None:
        speed_up(self.model)
        for until, name in ((STAGE_1_SHARE, "pictures"), (1.0, "chats")):
            if self.share < until:
                self.train(until, self.batches(name))
                self.save()
        self.check()

    def batches(self, name: str) -> Iterator[Batch]:
        start = -(-self.batches_seen[name] // POOL)
        source = Batches(self.processor.tokenizer, start, name == "pictures")
        loader = DataLoader(source, batch_size=None, num_workers=1, prefetch_factor=16)
        return iter(loader)


def visible(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T] to add to attention: a token sees earlier ones of its own group and of group 0.

    Padding is on the right, so nothing that is labelled sees it.
    """
    here, there = groups[:, :, None], groups[:, None, :]
    seen = ((there == here) | (there == 0)).tril()
    hidden = torch.finfo(dtype).min
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, hidden)[:, None]


def speed_up(model: LlavaForConditionalGeneration) -> None:
    """Compiled layers, and plain attention: together 1.6 times the speed on a CPU.

    The backward pass of fused attention is slow in bfloat16, and sequences are short.
    """
    for part in (model.model.vision_tower, model.model.language_model):
        part.config._attn_implementation = "eager"
    layers = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]
    for layer in layers:
        layer.compile(dynamic=True)


def schedule(share: float) -> float:
    """Warm-up at the start of each stage, full rate in the first, cosine in the second."""
    stage = share if share < STAGE_1_SHARE else share - STAGE_1_SHARE
    warm = min(1.0, 0.02 + stage / WARM_UP_SHARE)
    if share < STAGE_1_SHARE:
        return warm
    done = (share - STAGE_1_SHARE) / (1 - STAGE_1_SHARE)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _optimizers(model: nn.Module, labeller: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in (*model.named_parameters(), *labeller.named_parameters()):
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=PEAK_LR["muon"], weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=PEAK_LR["adamw"], betas=(0.9, 0.98), weight_decay=0.01)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


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
