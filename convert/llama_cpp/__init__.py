"""llama.cpp's files, a decoder and perhaps its mmproj, as the source of a bundle."""
