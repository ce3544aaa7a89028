"""A training run in a fixed time, which can be stopped and resumed."""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from scripts.demo.checkpoint import Model

PEAK_LR = {"muon": 4e-3, "adamw": 1e-3}
SAVE_EVERY, LOG_EVERY = 300.0, 30.0  # seconds


class AnyBatch(Protocol):
    @property
    def kind(self) -> str: ...


B = TypeVar("B", bound=AnyBatch)


class TrainingRun(ABC, Generic[B]):
    """Steps, log and saved state of the training of some modules.

    Learning rates follow the share of the time that is spent, so a run always ends annealed. Time is
    the CPU time of the thread that trains: what other programs take is not spent.
    """

    check_every = 600.0  # seconds

    def __init__(self, out: Path, seconds: float, rate: float, modules: dict[str, nn.Module]) -> None:
        self.out = out
        self.seconds = seconds
        self.rate = rate
        self.modules = modules
        self.optimizers = _optimizers(modules.values())
        self.spent = 0.0  # seconds of training so far, over all runs
        self.batches_seen: Counter[str] = Counter()

    @property
    def share(self) -> float:
        return self.spent / self.seconds

    @abstractmethod
    def loss(self, batch: B) -> dict[str, Tensor]:
        """Losses to sum, by name."""

    @abstractmethod
    def schedule(self) -> float:
        """What the peak learning rates are multiplied with now."""

    @abstractmethod
    def check(self) -> None:
        """Log a small held-out accuracy."""

    def step(self, parts: list[B]) -> dict[str, float]:
        started = time.thread_time()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.rate * self.schedule()
            optimizer.zero_grad(set_to_none=True)
        means: defaultdict[str, float] = defaultdict(float)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.loss(part)
            torch.autograd.backward(torch.stack(list(losses.values())).sum() / len(parts))
            for name, value in losses.items():
                means[name] += value.item() / len(parts)
            self.batches_seen[part.kind] += 1
        nn.utils.clip_grad_norm_(self.modules["model"].parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.spent += time.thread_time() - started
        return means

    def train(self, until: float, batches: Iterator[B], parts: int) -> None:
        """Steps of `parts` batches until this share of the time is spent."""
        recent: list[dict[str, float]] = []
        saved = checked = logged = time.monotonic()
        while self.share < until:
            recent.append(self.step([next(batches) for _ in range(parts)]))
            now = time.monotonic()
            if now - logged > LOG_EVERY:
                means = {
                    name: round(sum(losses[name] for losses in recent) / len(recent), 4) for name in recent[0]
                }
                self.log(**means, steps_a_second=round(len(recent) / (now - logged), 3))
                recent, logged = [], now
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
            if now - checked > self.check_every:
                self.check()
                checked = logged = time.monotonic()

    # ---- state ----

    def save(self) -> None:
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "spent": self.spent,
            "batches": dict(self.batches_seen),
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")

    def load(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.spent, self.batches_seen = state["spent"], Counter(state["batches"])

    def log(self, **entry: Any) -> None:
        entry = {"minutes": round(self.spent / 60, 2), **self.batches_seen, **entry}
        print(json.dumps(entry), flush=True)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")


def cosine(share: float) -> float:
    """From 1 at the start to 0.01 at the end."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def speed_up(model: Model) -> None:
    """Compiled layers, and plain attention: together 1.6 times the speed on a CPU.

    The backward pass of fused attention is slow in bfloat16, and sequences are short.
    """
    for part in (model.model.vision_tower, model.model.language_model):
        part.config._attn_implementation = "eager"
    layers = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]
    for layer in layers:
        layer.compile(dynamic=True)


def visible(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T] to add to attention: a token sees earlier ones of its own group and of group 0.

    Padding is on the right, so nothing that is labelled sees it.
    """
    here, there = groups[:, :, None], groups[:, None, :]
    seen = ((there == here) | (there == 0)).tril()
    hidden = torch.finfo(dtype).min
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, hidden)[:, None]


def _optimizers(modules: Iterable[nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else that is not frozen."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in (named for module in modules for named in module.named_parameters()):
        if parameter.requires_grad:
            (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=PEAK_LR["muon"], weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=PEAK_LR["adamw"], betas=(0.9, 0.98), weight_decay=0.01)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]
