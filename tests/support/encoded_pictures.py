"""Image embeds of a picture by every way to them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.vision.embeds_file import EmbedsFile
from acestep_gguf.vision.encode_pictures import encode_pictures
from acestep_gguf.vision.encoder import ImageEncoder


def embeds_by_all_ways(bundle: Path, picture: Path, folder: Path) -> tuple[NDArray[np.float32], EmbedsFile]:
    """The tower's embeds of ``picture``, float32 [n, n_embd], and a file of them.

    They are the same from the disk cache and from the file, which are written into ``folder``.
    """
    (done,) = encode_pictures(bundle, [picture], folder, n_threads=1)
    cache = DiskCache(folder / "cache")
    encoder = ImageEncoder(bundle, Bundle.read(bundle), n_threads=1, cache=cache)
    embeds = encoder.encode(encoder.prepare(picture)).embeds
    cache.close()
    other = ImageEncoder(bundle, Bundle.read(bundle), n_threads=1, cache=DiskCache(folder / "cache"))
    found = other.recall(other.prepare(picture))
    assert found is not None
    assert np.array_equal(found.embeds, embeds)
    file = EmbedsFile(done.path)
    assert np.array_equal(file.read(Bundle.read(bundle)).embeds, embeds)
    return embeds, file
