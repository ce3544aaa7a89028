"""From a question to the chunks of its answer: the Python API, conversations, and whose turn it is."""
