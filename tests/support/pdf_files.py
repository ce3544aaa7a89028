"""Small PDFs: a page is its width, its height and what is drawn on it."""

from collections.abc import Sequence

RED = "1 0 0 rg 0 0 9999 9999 re f"
BLUE = "0 0 1 rg 0 0 9999 9999 re f"
NO_PASSWORD_OPENS_IT = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'00' * 32}> /U <{'11' * 32}> >>"


def pdf(*pages: tuple[float, float, str], trailer: str = "", extra: Sequence[str] = ()) -> bytes:
    """A PDF of ``pages``; the first of the ``extra`` objects is object 3, that of the pages follow."""
    first = 3 + len(extra)
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        *extra,
    ]
    for number, (width, height, content) in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] "
            f"/Contents {first + 2 * number + 1} 0 R /Resources << /XObject << /Im 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    file = b"%PDF-1.7\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    return file + (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /ID [<00><00>] {trailer} >>\n"
        f"startxref\n{len(file)}\n%%EOF\n"
    ).encode("latin-1")
