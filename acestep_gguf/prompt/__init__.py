"""From messages to the tokens and pictures that the decoder reads, and from its tokens back to text."""
