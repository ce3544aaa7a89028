"""What does a quantization cost? The decoders and towers of a bundle answer side by side."""
