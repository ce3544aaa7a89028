"""Reading long parts of a prompt in int8 with onnxruntime, for llama.cpp to go on from."""
