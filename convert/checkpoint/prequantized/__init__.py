"""Checkpoints that are already quantized: their stored tensors, read as the weights that they stand for.

``formats`` picks one of awq, gptq, bitsandbytes and fp8 by ``quantization_config.quant_method``. None of them
needs the library that wrote the checkpoint.
"""
