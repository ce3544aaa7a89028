"""The parts of the demo checkpoints: configuration, tokenizer, chat template and processor.

They are a small LLaVA (CLIP tower, two-layer projector, Qwen2 decoder) and a LLaVA-NeXT of the same parts,
in the layout of the large ones, and are written by transformers' own `save_pretrained`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TypeAlias

import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
)

from scripts.demo.questions import corpus
from scripts.demo.scenes import PATCH, SIDE
from scripts.demo.sheets import PINPOINTS

Model: TypeAlias = "LlavaForConditionalGeneration | LlavaNextForConditionalGeneration"
Processor: TypeAlias = "LlavaProcessor | LlavaNextProcessor"
END_OF_TEXT, TURN_START, TURN_END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE)
VOCABULARY_ROWS = 768  # rows of the embedding, a few more than the tokenizer has tokens
TOKENS = 740
N_IMAGE_TOKENS = (SIDE // PATCH) ** 2

# ChatML. Content is a string or a list of parts; pictures stand where the list has them.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>\n' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE in Qwen2's format, with merges learnt from the questions and answers."""
    learner = Qwen2Tokenizer().backend_tokenizer
    learner.model = BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = {}  # numbered anew, because the added tokens left holes
    for token in sorted(learnt["vocab"], key=learnt["vocab"].__getitem__):
        vocabulary[token] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learnt["merges"]],
        pad_token=END_OF_TEXT,
        model_max_length=4096,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS[1:]])
    tokenizer.eos_token = TURN_END
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,  # CLS, which "default" drops
    )


def build_model(tokenizer: Qwen2Tokenizer, decoder_layers: int = 4) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=192,
        num_hidden_layers=6,  # features come from layer -2: the sixth is never used
        num_attention_heads=6,
        intermediate_size=768,
        hidden_act="gelu",
    )
    text = Qwen2Config(  # every row is a multiple of 256 long, as K-quants need
        vocab_size=VOCABULARY_ROWS,
        hidden_size=256,
        num_hidden_layers=decoder_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=N_IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=96,
    )
    return model


def build_tiled_processor(tokenizer: Qwen2Tokenizer) -> LlavaNextProcessor:
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def tiled_model(llava: LlavaForConditionalGeneration) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT with the weights of a LLaVA, and an `image_newline` that nothing knows yet."""
    same = (
        "vision_config",
        "text_config",
        "image_token_index",
        "projector_hidden_act",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "image_seq_length",
        "tie_word_embeddings",
    )
    settings = {name: copy.deepcopy(getattr(llava.config, name)) for name in same}
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**settings, image_grid_pinpoints=PINPOINTS))
    model.load_state_dict(llava.state_dict() | {"model.image_newline": model.model.image_newline})
    model.generation_config = llava.generation_config
    return model


def image_features(model: Model, pixel_values: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> [B, patches, hidden]: layer -2 without CLS, the unused last layer not run."""
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    features: torch.Tensor = hidden[:, 1:]
    return features


def plain_copy(model: Model) -> Model:
    """The same weights without what training does to the layers (compilation)."""
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.eval()


def export(model: Model, processor: Processor, folder: Path) -> None:
    """The checkpoint in bfloat16."""
    plain_copy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
