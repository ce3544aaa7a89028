"""The int8 layers of a decoder that there is as a GGUF file only, by the code of the conversion."""

from pathlib import Path

from acestep_gguf.bundle.schema import PrefillFile
from acestep_gguf.convert.checkpoint.config import TextConfig
from acestep_gguf.convert.int8_layers.files import plan_prefill
from acestep_gguf.plan.bundle_model import DecoderModel
from acestep_gguf.quantize.gguf_source import GgufSource
from acestep_gguf.quantize.staging import Staging


def write_int8_layers(path: Path, folder: Path) -> PrefillFile:
    """Make them, from the dequantized weights of the GGUF at ``path``, in ``folder``."""
    shape = DecoderModel.read(path).shape
    with GgufSource(path) as source, Staging(folder) as staging:
        info, metadata = source.info, source.header.metadata
        epsilon = metadata[f"{info.architecture}.attention.layer_norm_rms_epsilon"]
        assert isinstance(epsilon, float)
        config = TextConfig(
            model_type=info.architecture,
            vocab_size=info.n_vocab,
            hidden_size=info.embedding_length,
            intermediate_size=shape.n_ff,
            num_hidden_layers=info.block_count,
            num_attention_heads=info.head_count,
            num_key_value_heads=info.head_count_kv,
            head_dim=shape.n_embd_head,
            rms_norm_eps=epsilon,
        )
        planned = plan_prefill(config, {tensor.name: tensor for tensor in source.tensors}, source.stamp)
        record = planned.write(staging)
        staging.publish()
    return record
