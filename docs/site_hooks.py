"""What the site has besides the pages of this folder: pages of other files, and a navigation without holes.

The pages link to files of the repository (``../configs/devices.yaml``), as the repository's own browser shows them. In
the site such a file has a page of its own, so that no link leaves it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
# Page of the site → the file of the repository that it shows.
OTHER_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
MORE = "More"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Folders in the navigation become their pages, and pages that it lacks its last section."""
    pages = sorted(path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md"))
    nav = [_expanded(entry, pages) for entry in config.nav or []]
    missing = sorted(set(pages) - set(_named(nav)))
    config.nav = [*nav, {MORE: missing}] if missing else nav
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the changelog and the like, and a page for each file that a page links to."""
    root = Path(config.docs_dir).parent
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, name in OTHER_PAGES.items():
        texts[uri] = (root / name).read_text()
        files.append(File.generated(config, uri, content=texts[uri]))
    linked = {target for uri, text in texts.items() for target in _outside(uri, text, root)}
    for target in sorted(linked):
        uri = _uri(target)
        if uri not in texts:
            content = _listing(root / target, target)
            files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their pages."""
    uri, root = page.file.src_uri, Path(config.docs_dir).parent
    folder = os.path.dirname(uri)

    def replaced(match: re.Match[str]) -> str:
        target = _target(uri, match[1], root)
        if target is None:
            return match[0]
        return f"]({os.path.relpath(_uri(target), folder or '.')}{match[2] or ''})"

    return LINK.sub(replaced, markdown)


def _expanded(entry: Any, pages: list[str]) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(value, pages) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_expanded(value, pages) for value in entry]
    return [page for page in pages if page.startswith(entry)] if entry.endswith("/") else entry


def _named(entry: Any) -> list[str]:
    if isinstance(entry, dict):
        entry = list(entry.values())
    return [name for part in entry for name in _named(part)] if isinstance(entry, list) else [entry]


def _outside(uri: str, text: str, root: Path) -> list[str]:
    return [target for name, _ in LINK.findall(text) if (target := _target(uri, name, root)) is not None]


def _target(uri: str, name: str, root: Path) -> str | None:
    """The file of the repository outside of ``docs`` that a link means, or the page when a file outside means one."""
    base = Path("docs", uri) if uri not in OTHER_PAGES else Path(OTHER_PAGES[uri])
    path = os.path.normpath(base.parent / name)
    inside = path.startswith("docs" + os.sep)
    if (inside and uri not in OTHER_PAGES) or path.startswith("..") or not (root / path).is_file():
        return None
    return path


def _uri(target: str) -> str:
    """The page of the site that shows a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return next((uri for uri, name in OTHER_PAGES.items() if name == target), f"files/{target}.md")


def _listing(path: Path, name: str) -> str:
    """A page with the file as it is; the search leaves it out."""
    language = {".py": "python", ".yaml": "yaml", ".sh": "sh"}.get(path.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n``````{language}\n{path.read_text()}\n``````\n"
