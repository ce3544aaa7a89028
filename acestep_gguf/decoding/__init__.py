"""Reading a prompt and writing an answer with llama.cpp, and what is kept or guessed so that it is fast."""
