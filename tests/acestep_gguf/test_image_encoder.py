from pathlib import Path

import numpy as np
from PIL import Image

from acestep_gguf.bundle import Bundle
from acestep_gguf.image_encoder import REMEMBERED, ImageEncoder


def test_pictures_are_remembered_by_their_pixels(tiny_bundle: Path, picture: Path) -> None:
    encoder = ImageEncoder(tiny_bundle, Bundle.read(tiny_bundle), n_threads=1)
    first = encoder.encode(picture)
    assert encoder.encode(picture.read_bytes()) is first
    assert encoder.encode(Image.open(picture)) is first
    other = Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert not np.array_equal(encoder.encode(other), first)
    for gray in range(REMEMBERED - 1):
        encoder.encode(Image.new("L", (28, 28), gray))
    assert encoder.encode(picture) is not first


def test_closing_frees_the_tower(tiny_bundle: Path, picture: Path) -> None:
    encoder = ImageEncoder(tiny_bundle, Bundle.read(tiny_bundle), n_threads=1)
    tower = encoder.load()
    assert encoder.load() is tower
    first = encoder.encode(picture)
    encoder.close()
    assert np.array_equal(encoder.encode(picture), first)
    assert encoder.load() is not tower
