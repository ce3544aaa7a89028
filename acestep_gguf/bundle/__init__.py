"""What a bundle is: bundle.json, its GGUF and ONNX files, and whether they are what it says."""
