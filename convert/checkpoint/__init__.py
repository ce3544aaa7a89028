"""Reading a Hugging Face folder: its config, tokenizer, prompt, image processor and tensors."""
