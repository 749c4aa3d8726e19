"""Hooks of mkdocs: what a page links to in the repository becomes a part of the site; no text is there twice."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
HOME = "README.md"
# The target of a Markdown link within the repository: neither an address nor an anchor alone.
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")
PUBLISHED = PurePosixPath("reports")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the README as the home page, and every file that pages link to outside of the folder of pages."""
    pending = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    pending += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "models/README.md"]
    known: set[str] = set()
    while pending:
        path = pending.pop()
        if path in known:
            continue
        known.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            targets = (resolved(path, match[1]) for match in LINK.finditer((ROOT / path).read_text(encoding="utf-8")))
            pending += [target for target in targets if (ROOT / target).is_file()]
        elif PurePosixPath(path).parent == PUBLISHED:  # whose pages link to one another
            pending += [f"{PUBLISHED}/{page.name}" for page in (ROOT / PUBLISHED).glob("*.html")]
    return files


def on_page_markdown(markdown: str, *, page: Any, **others: Any) -> str:
    """Let links that hold in the repository hold in the site."""
    here = repository_path(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = site_uri(resolved(here, match[1]))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    return LINK.sub(link, markdown)


def on_page_content(html: str, **others: Any) -> str:
    """Leave out the colons that announce an example in a docstring."""
    return html.replace("<p>::</p>", "")


def on_post_page(output: str, **others: Any) -> str:
    """Name the dialog that searches, for those who hear the page."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def resolved(path: str, target: str) -> str:
    """Return the repository's path of what a file links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def site_uri(path: str) -> str:
    """Return where a file of the repository is in the site."""
    if path == HOME:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def repository_path(uri: str) -> str:
    """Return which file of the repository a page of the site is."""
    if uri == "index.md":
        return HOME
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
