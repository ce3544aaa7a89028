"""From a picture to the image embeds that the decoder reads."""
