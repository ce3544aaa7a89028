"""The decoder's layers in int8, for onnxruntime to read long prompts with."""
