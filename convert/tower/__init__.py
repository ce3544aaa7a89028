"""The vision tower and projector as files: ONNX in float32 and int8, and llama.cpp's mmproj."""
