"""Recipes, block quantizers and GGUF writing: from tensors to quantized files."""
