"""Memory for opening pictures, against what it really takes at its peak."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.vision.image import opening_bytes
from tests.support import pdf_files

pillow_heif.register_heif_opener()  # Pillow writes it then

SIDE = 2500
MB = 10**6
SIZE = Size(height=224, width=224)

# glibc gives memory back at once then, and keeps nothing of the small picture for the large one.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

# A process for each picture: opens it, after a small one like it, and prints what that takes at its peak.
CHILD = """
import re, sys
from pathlib import Path
import msgspec
from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.vision.image import pixel_values

def taken(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

spec, small, large = msgspec.json.decode(sys.argv[1], type=tuple[ImageSpec, str, str])
pixel_values(small, spec)
before = taken("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
pixel_values(large, spec)
print(taken("VmHWM") - before)
"""


def spec(**changes: Any) -> ImageSpec:
    fields: dict[str, Any] = {
        "pad_to_square": None,
        "resize": "shortest_edge",
        "resize_to": SIZE,
        "resample": "bicubic",
        "center_crop": SIZE,
        "rescale_factor": 1 / 255,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "size": SIZE,
        "n_image_tokens": 4,
        "n_embd": 8,
    }
    return ImageSpec(**fields | changes)


def smooth(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def encoded(mode: str, format: str, size: tuple[int, int] = (SIDE, SIDE), **options: Any) -> bytes:
    picture = smooth(*size)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8)
    elif mode == "RGBA":
        picture.putalpha(picture.convert("L"))
    else:
        picture = picture.convert(mode)
    file = io.BytesIO()
    if format == "PDF":
        picture.save(file, "JPEG", progressive=True, subsampling=0)
        return pdf(size, file.getvalue(), f"/Device{mode}")
    picture.save(file, format, **options)
    return file.getvalue()


def pdf(size: tuple[int, int], jpeg: bytes, colours: str) -> bytes:
    head = "<< /Subtype /Image /Width {} /Height {} /BitsPerComponent 8".format(*size)
    filter = f"/Filter /DCTDecode /Length {len(jpeg)}"
    picture = f"{head} /ColorSpace {colours} {filter} >>\nstream\n{jpeg.decode('latin-1')}\nendstream"
    return pdf_files.pdf((500, 500, "500 0 0 500 0 0 cm /Im Do"), extra=[picture])


# How a picture is saved, and what its model does with it.
CASES: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("RGB", "PNG", {}, {}),
    ("1", "PNG", {}, {}),
    ("P", "PNG", {"transparency": 1}, {}),
    ("RGBA", "PNG", {}, {}),
    ("LA", "PNG", {}, {}),
    ("I;16", "PNG", {}, {}),
    ("RGB", "JPEG", {}, {}),
    ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}, {}),
    ("RGB", "WEBP", {"method": 0}, {}),
    ("RGBA", "WEBP", {"method": 0, "lossless": True, "quality": 0}, {}),
    ("L", "PNG", {"size": (400, 20_000)}, {"resize_to": Size(height=512, width=512)}),
    ("L", "PNG", {"size": (1000, 4000)}, {"pad_to_square": (0, 0, 0)}),
    ("P", "GIF", {}, {}),
    ("RGB", "BMP", {}, {}),
    ("RGBA", "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 2**31 - 1}, {}),
    ("RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}, {}),
    ("RGBA", "HEIF", {"chroma": 444}, {}),
    ("RGB", "PDF", {}, {}),
    ("CMYK", "PDF", {}, {}),
    ("RGB", "PDF", {}, {"resize_to": Size(height=1200, width=1200)}),
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of memory")
@pytest.mark.parametrize(("mode", "format", "options", "changes"), CASES)
def test_opening_a_picture_takes_no_more_than_is_planned(
    mode: str, format: str, options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(encoded(mode, format, **options | {"size": (300, 300)}))
    large.write_bytes(encoded(mode, format, **options))
    case = msgspec.json.encode((spec(**changes), str(small), str(large))).decode()
    command = [sys.executable, "-c", CHILD, case]
    done = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True, check=True)
    planned, peak = opening_bytes(large, spec(**changes)), int(done.stdout)
    assert peak < planned + 6 * MB  # tiles come on top
    assert planned < 2 * peak  # it is the format's worst that is planned
