"""Many pictures, one table of answers: inputs become tasks, every answer is kept at once."""
