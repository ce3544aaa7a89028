"""llama.cpp behind small classes. Nothing else in acestep_gguf calls it."""
