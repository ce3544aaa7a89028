"""The decoder's GGUF metadata. Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

import math

from gguf import GGML_QUANT_VERSION, Keys

from acestep_gguf.bundle.names import LLAMA_FTYPE, Ftype
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.convert.checkpoint.config import TextConfig
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary
from acestep_gguf.quantize.gguf_layout import boolean, f32, f32s, i32s, string, strings, u32


def decoder_metadata(
    config: TextConfig,
    vocabulary: Vocabulary,
    prompt: PromptSpec,
    *,
    name: str,
    size_label: str,
    ftype: Ftype,
) -> dict[str, bytes]:
    """All keys of a decoder file of ``ftype``, with their encoded values."""
    return {
        **_general(config.family.arch, name, size_label, ftype),
        **_hyperparameters(config),
        **_rope(config),
        **_tokenizer(config, vocabulary, prompt),
    }


def _general(arch: str, name: str, size_label: str, ftype: Ftype) -> dict[str, bytes]:
    return {
        Keys.General.ARCHITECTURE: string(arch),
        Keys.General.TYPE: string("model"),
        Keys.General.NAME: string(name),
        Keys.General.SIZE_LABEL: string(size_label),
        Keys.General.QUANTIZATION_VERSION: u32(GGML_QUANT_VERSION),
        Keys.General.FILE_TYPE: u32(LLAMA_FTYPE[ftype]),
    }


def _hyperparameters(config: TextConfig) -> dict[str, bytes]:
    keys = {
        Keys.LLM.BLOCK_COUNT: u32(config.num_hidden_layers),
        Keys.LLM.CONTEXT_LENGTH: u32(config.context_length),
        Keys.LLM.EMBEDDING_LENGTH: u32(config.hidden_size),
        Keys.LLM.FEED_FORWARD_LENGTH: u32(config.intermediate_size),
        Keys.LLM.VOCAB_SIZE: u32(config.vocab_size),
        Keys.Attention.HEAD_COUNT: u32(config.num_attention_heads),
        Keys.Attention.HEAD_COUNT_KV: u32(config.n_key_value_heads),
        Keys.Attention.LAYERNORM_RMS_EPS: f32(config.rms_norm_eps),
    }
    if config.head_dim is not None:
        keys |= dict.fromkeys((Keys.Attention.KEY_LENGTH, Keys.Attention.VALUE_LENGTH), u32(config.head_dim))
    return {key.format(arch=config.family.arch): value for key, value in keys.items()}


def _rope(config: TextConfig) -> dict[str, bytes]:
    rope = config.rope_parameters
    keys = {
        Keys.Rope.DIMENSION_COUNT: u32(config.head_size),
        Keys.Rope.FREQ_BASE: f32(rope.rope_theta),
    }
    if rope.rope_type in ("linear", "yarn") and rope.factor is not None:
        keys[Keys.Rope.SCALING_TYPE] = string(rope.rope_type)
        keys[Keys.Rope.SCALING_FACTOR] = f32(rope.factor)
    if rope.rope_type == "yarn" and rope.factor is not None:
        keys[Keys.Rope.SCALING_ORIG_CTX_LEN] = u32(config.original_context_length)
        # llama.cpp multiplies by 0.1 ln(factor) + 1 itself, so only what differs from it is left.
        keys[Keys.Rope.SCALING_ATTN_FACTOR] = f32(
            rope.yarn_attention_factor() / (0.1 * math.log(rope.factor) + 1.0)
        )
    return {key.format(arch=config.family.arch): value for key, value in keys.items()}


def _tokenizer(config: TextConfig, vocabulary: Vocabulary, prompt: PromptSpec) -> dict[str, bytes]:
    keys = {
        Keys.Tokenizer.MODEL: string(vocabulary.model),
        Keys.Tokenizer.PRE: string(vocabulary.pre),
        Keys.Tokenizer.LIST: strings(vocabulary.tokens),
        Keys.Tokenizer.TOKEN_TYPE: i32s(vocabulary.types),
        **_merging(vocabulary),
        Keys.Tokenizer.EOS_ID: u32(prompt.control_tokens[prompt.stop_tokens[0]]),
        Keys.Tokenizer.ADD_BOS: boolean(prompt.add_bos),
        Keys.Tokenizer.CHAT_TEMPLATE: string(prompt.chat_template),
    }
    bos_id = vocabulary.id(prompt.template_tokens.get("bos_token"))
    optional = {
        Keys.Tokenizer.BOS_ID: config.bos_token_id if bos_id is None else bos_id,
        Keys.Tokenizer.PAD_ID: vocabulary.id(prompt.template_tokens.get("pad_token")),
    }
    return keys | {key: u32(token_id) for key, token_id in optional.items() if token_id is not None}


def _merging(vocabulary: Vocabulary) -> dict[str, bytes]:
    if vocabulary.model == "gpt2":
        return {Keys.Tokenizer.MERGES: strings(vocabulary.merges)}
    return {
        Keys.Tokenizer.SCORES: f32s(vocabulary.scores),
        Keys.Tokenizer.ADD_PREFIX: boolean(vocabulary.space_prefix != "never"),
    }
