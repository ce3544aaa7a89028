"""llama.cpp's pair of files, a decoder and its mmproj, as the source of a bundle."""
