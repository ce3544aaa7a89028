"""Endless training batches for the demo checkpoint, made in a worker process.

Batch number n depends on n alone, so a resumed run goes on with pictures it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Qwen2Tokenizer

from scripts.demo.checkpoint import IMAGE, N_IMAGE_TOKENS, TURN_END, TURN_START
from scripts.demo.labels import IGNORE, cell_labels, patch_labels
from scripts.demo.questions import SINGLES, Question, pair_questions, questions, random_pair
from scripts.demo.scenes import SIDE, Mark, Picture, Scene, draw, random_number, random_word

# share of the sequences; the pictures of "pair" are two scenes
MIX = {"scene": 0.34, "pair": 0.32, "number": 0.11, "word": 0.05, "chart": 0.18}
MOST_QUESTIONS = 10
DESCRIBED_SHARE = 0.25  # the others are asked no description: it is long and soon learnt
APART_SHARE = 0.8  # sequences of separate questions; the others are running chats
SYSTEM_SHARE = 0.05
SYSTEM = "You are a helpful assistant."
SEQUENCES = 16  # in a batch
POOL = 16  # batches made at once and cut by length, so that little is padding
EXTRA_TEXTS = 12  # numbers and words in a batch of chats for the patch labels alone: glyphs are slow to learn
PARTS = 2  # batches to a training step: one of long and one of short chats, so of all kinds
Drawn = tuple[Image.Image, list[Mark]]


@dataclass
class Batch:
    pixels: Tensor  # [images, SIDE, SIDE, 3] uint8; those of the chats first
    patch_labels: Tensor  # [images, patches, 2, labels]
    input_ids: Tensor  # [sequences, tokens]; no columns in a batch of pictures only
    labels: Tensor
    groups: Tensor
    positions: Tensor
    pairs: Tensor  # [pairs, 2, patches, 2] cell labels of both pictures

    @property
    def kind(self) -> str:
        return "chats" if self.input_ids.numel() else "pictures"


@dataclass
class Tokens:
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)  # a token sees its own group and group 0
    positions: list[int] = field(default_factory=list)

    def add(self, ids: list[int], group: int, start: int, labelled: bool = False) -> None:
        self.ids += ids
        self.labels += ids if labelled else [IGNORE] * len(ids)
        self.groups += [group] * len(ids)
        self.positions += range(start, start + len(ids))


@dataclass
class Chat:
    drawn: list[Drawn]
    tokens: Tokens
    pair: list[Scene]  # empty if it is about one picture


def render(picture: Picture, rng: Random) -> Drawn:
    """A 112-pixel picture, from smooth to slightly rough, or shrunk from a larger one."""
    scale = rng.choice((1, 1, 1, 2, 4))
    if scale == 1:
        return draw(picture, rng, oversample=rng.choice((1, 2, 2, 3)))
    image, marks = draw(picture, rng, (SIDE * scale, SIDE * scale), rng.choice((1, 2)))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), marks


def informal(text: str, rng: Random) -> str:
    """Sometimes without the capital letter or the final mark, as people type."""
    if rng.random() < 0.1:
        text = text[0].lower() + text[1:]
    return text[:-1] if rng.random() < 0.1 else text


class Batches(IterableDataset[Batch]):
    def __init__(self, tokenizer: Qwen2Tokenizer, start: int, pictures_only: bool) -> None:
        self.tokenizer = tokenizer
        self.start = start  # in pools
        self.pictures_only = pictures_only
        self.pad: int = tokenizer.pad_token_id

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        pool = self.start
        while True:
            rng = Random(f"train/{self.pictures_only}/{pool}")
            yield from self._pictures(rng) if self.pictures_only else self._chats(rng)
            pool += 1

    def _pictures(self, rng: Random) -> Iterator[Batch]:
        kinds = list(SINGLES)
        for _ in range(POOL):
            pictures = [SINGLES[rng.choice(kinds)](rng, False) for _ in range(2 * SEQUENCES)]
            empty = torch.empty(0, 0, dtype=torch.long)
            yield Batch(*_pixels([render(one, rng) for one in pictures]), *[empty] * 5)

    def _chats(self, rng: Random) -> Iterator[Batch]:
        chats = [self._chat(rng) for _ in range(POOL * SEQUENCES)]
        chats.sort(key=lambda chat: len(chat.tokens.ids))
        groups = [chats[i : i + SEQUENCES] for i in range(0, len(chats), SEQUENCES)]
        pairs = list(zip(groups[: POOL // 2], groups[: POOL // 2 - 1 : -1], strict=True))
        rng.shuffle(pairs)
        for group in (group for pair in pairs for group in pair):
            drawn = [one for chat in group for one in chat.drawn]
            texts = [rng.choice((random_number, random_word))(rng) for _ in range(EXTRA_TEXTS)]
            drawn += [render(text, rng) for text in texts]
            yield Batch(
                *_pixels(drawn),
                padded([chat.tokens.ids for chat in group], self.pad),
                padded([chat.tokens.labels for chat in group], IGNORE),
                padded([chat.tokens.groups for chat in group], 0),
                padded([chat.tokens.positions for chat in group], 0),
                torch.from_numpy(np.array([[*map(cell_labels, chat.pair)] for chat in group if chat.pair])),
            )

    def _chat(self, rng: Random) -> Chat:
        drawn, asked, pair = random_chat(rng)
        apart = rng.random() < APART_SHARE
        return Chat(drawn, encode(self.tokenizer, asked, [N_IMAGE_TOKENS] * len(drawn), rng, apart), pair)


def random_chat(rng: Random) -> tuple[list[Drawn], list[Question], list[Scene]]:
    """Pictures, questions about them, and what they show if they are a pair."""
    pair: list[Scene] = []
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    if kind == "pair":
        first, second, answer = random_pair(rng)
        pair = [first, second]
        drawn = [render(scene, rng) for scene in pair]
        asked = pair_questions(first, second, answer, rng)
    else:
        picture = SINGLES[kind](rng, False)
        drawn = [render(picture, rng)]
        asked = questions(picture, rng)
    if rng.random() > DESCRIBED_SHARE:
        asked = [one for one in asked if one.skill != "description"]
    return drawn, rng.sample(asked, min(MOST_QUESTIONS, len(asked))), pair


def encode(
    tokenizer: Qwen2Tokenizer, asked: list[Question], n_image_tokens: Sequence[int], rng: Random, apart: bool
) -> Tokens:
    """A chat in the checkpoint's template, with labels on the answers only.

    `n_image_tokens`: of each picture.
    `apart`: every question directly follows the pictures, in position and in what it can see, as if
    it were the only one. In a running chat the model learns to copy from the answers before.
    """
    tokens = Tokens()
    before = f"{TURN_START}system\n{SYSTEM}{TURN_END}\n" if rng.random() < SYSTEM_SHARE else ""
    images = "".join(f"{IMAGE * count}\n" for count in n_image_tokens)
    tokens.add(tokenizer(f"{before}{TURN_START}user\n{images}").input_ids, 0, 0)
    after_images, opening = len(tokens.ids), ""
    for number, one in enumerate(asked, 1):
        text = f"{opening}{informal(one.text, rng)}{TURN_END}\n{TURN_START}assistant\n"
        group, start = (number, after_images) if apart else (0, len(tokens.ids))
        prompt_ids = tokenizer(text).input_ids
        tokens.add(prompt_ids, group, start)
        answer_ids = tokenizer(one.answer + TURN_END).input_ids
        tokens.add(answer_ids, group, start + len(prompt_ids), labelled=True)
        opening = "" if apart else f"\n{TURN_START}user\n"
    return tokens


def _pixels(drawn: list[Drawn]) -> tuple[Tensor, Tensor]:
    pixels = np.stack([np.asarray(image) for image, _ in drawn])
    labels = np.stack([patch_labels(marks) for _, marks in drawn])
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
