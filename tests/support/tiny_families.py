"""What tiny checkpoints of each family of decoders and towers have in their files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acestep_gguf.convert.checkpoint.chat_templates import VICUNA
from tests.support import tiny_llama3, tiny_sentencepiece, tiny_smollm, tiny_tekken, tiny_tokenizer
from tests.support.tiny_tokenizer import added_token

QWEN2_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


MISTRAL_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set is_user = message['role'] == 'user' -%}{{- '[INST] ' if is_user else '' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- ' [/INST]' if is_user else eos_token -}}{%- endfor -%}"
)

# The template writes <s>, the tokenizer does not.
TEKKEN_TEMPLATE = "{{- bos_token -}}" + MISTRAL_TEMPLATE.replace("[INST] ", "[INST]").replace(" [/", "[/")


LLAMA3_TEMPLATE = (
    QWEN2_TEMPLATE.replace(
        "<|im_start|>' + message['role'] + '\\n'", "<|start_header_id|>' + message['role'] + HEADER_END"
    )
    .replace("<|im_end|>\\n", "<|eot_id|>")
    .replace("'<|im_start|>assistant\\n'", "'<|start_header_id|>assistant' + HEADER_END")
    .replace("HEADER_END", "'<|end_header_id|>\\n\\n'")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyDecoder:
    """A decoder's family; its tokens are those of its tokenizer."""

    model_type: str
    architecture: str
    has_bias: bool = False  # of queries, keys and values
    has_head_norms: bool = False  # of queries and keys
    head_dim: int | None = None  # the config class's default
    chat_template: str
    eos_tokens: tuple[str, ...]
    pad_token: str
    n_tokens: Callable[[], int]
    token_id: Callable[[str], int]
    tokenizer_json: Callable[..., dict[str, Any]]
    tokenizer_config: dict[str, Any]


def with_added_tokens(decoder: TinyDecoder, added: Sequence[str]) -> TinyDecoder:
    """``decoder`` with special tokens more, which take the place of padding rows."""

    def token_id(token: str) -> int:
        return decoder.n_tokens() + added.index(token) if token in added else decoder.token_id(token)

    def tokenizer_json(**options: Any) -> dict[str, Any]:
        tokenizer = decoder.tokenizer_json(**options)
        tokenizer["added_tokens"] += [added_token(token_id(token), token, special=True) for token in added]
        return tokenizer

    return replace(decoder, token_id=token_id, tokenizer_json=tokenizer_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTower:
    """A tower's family: what its config.json has, but for ``defaults`` of its config class in version 4's."""

    model_type: str
    has_class_token: bool
    config: dict[str, Any]
    image_processor: dict[str, Any]
    defaults: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyArchitecture:
    """A kind of model: what its files have, but for ``defaults`` of its config class in version 4's."""

    model_type: str
    architecture: str
    processor_class: str
    image_processor: dict[str, Any]
    defaults: dict[str, Any]
    added_tokens: tuple[str, ...] = ()
    has_pinpoints: bool = False


QWEN2 = TinyDecoder(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    has_bias=True,
    chat_template=QWEN2_TEMPLATE,
    eos_tokens=("<|im_end|>", "<|endoftext|>"),
    pad_token="<|endoftext|>",
    n_tokens=tiny_tokenizer.n_tokens,
    token_id=tiny_tokenizer.token_id,
    tokenizer_json=tiny_tokenizer.tokenizer_json,
    tokenizer_config={
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "tokenizer_class": "Qwen2Tokenizer",
    },
)
LLAMA = TinyDecoder(
    model_type="llama",
    architecture="LlamaForCausalLM",
    chat_template=VICUNA,
    eos_tokens=("</s>",),
    pad_token="<pad>",
    n_tokens=tiny_sentencepiece.n_tokens,
    token_id=tiny_sentencepiece.token_id,
    tokenizer_json=tiny_sentencepiece.tokenizer_json,
    tokenizer_config={
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "legacy": False,
        "pad_token": "<pad>",
        "model_max_length": 512,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
)
DECODERS = {
    "qwen2": QWEN2,
    "qwen3": replace(
        QWEN2,
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        has_bias=False,
        has_head_norms=True,
        head_dim=128,
    ),
    "llama": LLAMA,
    "llama3": replace(
        LLAMA,
        chat_template=LLAMA3_TEMPLATE,
        eos_tokens=("<|eot_id|>", "<|end_of_text|>"),
        n_tokens=tiny_llama3.n_tokens,
        token_id=tiny_llama3.token_id,
        tokenizer_json=tiny_llama3.tokenizer_json,
        tokenizer_config={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<pad>",
            "unk_token": None,
            "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    ),
    "smollm": replace(
        LLAMA,
        chat_template=QWEN2_TEMPLATE,
        eos_tokens=("<end_of_utterance>",),
        pad_token="<|im_end|>",
        n_tokens=tiny_smollm.n_tokens,
        token_id=tiny_smollm.token_id,
        tokenizer_json=tiny_smollm.tokenizer_json,
        tokenizer_config={
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 2048,
            "tokenizer_class": "GPT2Tokenizer",
        },
    ),
    "mistral": replace(
        LLAMA, model_type="mistral", architecture="MistralForCausalLM", chat_template=MISTRAL_TEMPLATE
    ),
    "tekken": replace(
        LLAMA,
        model_type="mistral",
        architecture="MistralForCausalLM",
        chat_template=TEKKEN_TEMPLATE,
        n_tokens=tiny_tekken.n_tokens,
        token_id=tiny_tekken.token_id,
        tokenizer_json=tiny_tekken.tokenizer_json,
        tokenizer_config={
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    ),
}
TOWERS = {
    "clip": TinyTower(
        model_type="clip_vision_model",
        has_class_token=True,
        config={},
        image_processor={
            "do_center_crop": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        defaults={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    "siglip": TinyTower(
        model_type="siglip_vision_model",
        has_class_token=False,
        config={"vision_use_head": False},
        image_processor={
            "image_processor_type": "SiglipImageProcessor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        defaults={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    ),
}
LLAVA = TinyArchitecture(
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    processor_class="LlavaProcessor",
    image_processor={},
    defaults={"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
)
ARCHITECTURES = {
    "llava": LLAVA,
    "llava_next": replace(
        LLAVA,
        model_type="llava_next",
        architecture="LlavaNextForConditionalGeneration",
        processor_class="LlavaNextProcessor",
        image_processor={"image_processor_type": "LlavaNextImageProcessor", "do_pad": True},
        has_pinpoints=True,
    ),
    "llava_onevision": TinyArchitecture(
        model_type="llava_onevision",
        architecture="LlavaOnevisionForConditionalGeneration",
        processor_class="LlavaOnevisionProcessor",
        image_processor={"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True},
        defaults={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        added_tokens=("<video>",),
        has_pinpoints=True,
    ),
}
