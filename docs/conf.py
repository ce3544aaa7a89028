"""The documentation as a site: `make docs`. Every page is the Markdown file that also reads well without it.

The repository's root is the source folder, so that README.md and what it links to are pages where they lie; a
link to another file of the repository becomes a download of it.
"""

import re
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "acestep-gguf"
release = version_of(project)
copyright = "its contributors, Apache-2.0"

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "acestep_gguf/demo/README.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "code"
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = project
# The front page is README.html, and a browser asks for index.html.
html_additional_pages = {"index": "to_front_page.html"}
templates_path = ["templates"]
html_copy_source = False


TABLE_OF_CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}
{pages}
```
"""


def navigation(readme: str) -> str:
    """Tables of contents for the table at the end of README.md, one for each row."""
    _, _, table = readme.partition("\n## More\n")
    return "".join(
        TABLE_OF_CONTENTS.format(
            caption=stage.capitalize(), pages="\n".join(re.findall(r"\]\((\S+)\.md\)", links))
        )
        for stage, links in re.findall(r"^\| ([\w ]+) \| (.*) \|$", table, re.MULTILINE)
    )


def add_navigation(_app: Sphinx, page: str, content: list[str]) -> None:
    """Give the front page the site's navigation, which Markdown read elsewhere has no word for."""
    if page == root_doc:
        content[0] += navigation(content[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_navigation)
