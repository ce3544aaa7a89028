"""Endless training batches for the checkpoint that reads sheets, made in a worker process.

Batch number n depends on n alone, so a resumed run goes on with pictures it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import LlavaNextProcessor

from scripts.demo.batches import APART_SHARE, MOST_QUESTIONS, Tokens, encode, padded, random_chat
from scripts.demo.checkpoint import N_IMAGE_TOKENS
from scripts.demo.labels import IGNORE
from scripts.demo.questions import Question
from scripts.demo.sheets import draw_sheet, random_sheet, sheet_questions

SHEET_SHARE = 0.8  # of the sequences; the others are the demo checkpoint's chats, so that it keeps its skills
UNTILED_SHARE = 0.08  # of the sheets: shown without tiles, so that what is told without them is its best
SEQUENCES = 8  # in a batch
POOL = 8  # batches made at once and cut by length, so that little is padding


@dataclass
class SheetBatch:
    crops: Tensor  # [crops, 3, SIDE, SIDE] normalized, of all pictures in turn, the whole picture first
    n_crops: list[int]  # of each picture; 1 where it is shown without tiles
    sizes: list[tuple[int, int]]  # of each picture in pixels: height, width
    input_ids: Tensor  # [sequences, tokens]
    labels: Tensor
    groups: Tensor
    positions: Tensor

    @property
    def kind(self) -> str:
        return "chats"


@dataclass
class SheetChat:
    crops: list[np.ndarray]  # of each picture: [crops, 3, SIDE, SIDE]
    sizes: list[tuple[int, int]]
    tokens: Tokens


class SheetBatches(IterableDataset[SheetBatch]):
    def __init__(self, processor: LlavaNextProcessor, start: int) -> None:
        self.processor = processor
        self.start = start  # in pools

    def __iter__(self) -> Iterator[SheetBatch]:
        torch.set_num_threads(1)
        pool = self.start
        while True:
            yield from self._pool(Random(f"train/sheets/{pool}"))
            pool += 1

    def _pool(self, rng: Random) -> Iterator[SheetBatch]:
        chats = [self._chat(rng) for _ in range(POOL * SEQUENCES)]
        chats.sort(key=lambda chat: len(chat.tokens.ids))
        groups = [chats[i : i + SEQUENCES] for i in range(0, len(chats), SEQUENCES)]
        rng.shuffle(groups)
        for group in groups:
            crops = [picture for chat in group for picture in chat.crops]
            yield SheetBatch(
                torch.from_numpy(np.concatenate(crops)),
                [len(picture) for picture in crops],
                [size for chat in group for size in chat.sizes],
                padded([chat.tokens.ids for chat in group], self.processor.tokenizer.pad_token_id),
                padded([chat.tokens.labels for chat in group], IGNORE),
                padded([chat.tokens.groups for chat in group], 0),
                padded([chat.tokens.positions for chat in group], 0),
            )

    def _chat(self, rng: Random) -> SheetChat:
        images, asked, tiled = _sheet_chat(rng) if rng.random() < SHEET_SHARE else _demo_chat(rng)
        seen = self.processor.image_processor(images, do_pad=False)
        crops = [np.asarray(picture, np.float32)[: None if tiled else 1] for picture in seen["pixel_values"]]
        sizes = [(image.height, image.width) for image in images]
        token = self.processor.image_token
        counts = [self.processor.replace_image_token(seen, i).count(token) for i in range(len(images))]
        if not tiled:
            counts = [N_IMAGE_TOKENS + 1] * len(images)  # image_newline ends it
        apart = rng.random() < APART_SHARE
        return SheetChat(crops, sizes, encode(self.processor.tokenizer, asked, counts, rng, apart))


def _sheet_chat(rng: Random) -> tuple[list[Image.Image], list[Question], bool]:
    sheet = random_sheet(rng)
    asked = sheet_questions(sheet, rng)
    tiled = rng.random() >= UNTILED_SHARE
    return [draw_sheet(sheet, rng)], rng.sample(asked, min(MOST_QUESTIONS, len(asked))), tiled


def _demo_chat(rng: Random) -> tuple[list[Image.Image], list[Question], bool]:
    drawn, asked, _ = random_chat(rng)
    return [image for image, _ in drawn], asked, True
