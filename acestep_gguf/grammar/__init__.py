"""What an answer may be, as a JSON Schema or a grammar says, and which tokens that leaves to choose from."""
