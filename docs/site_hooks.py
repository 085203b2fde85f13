"""What `make docs` adds to mkdocs: pages from outside docs/ join the site, and nothing may load from another host."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "rewards/README.md",
    "recipes/README.md",
)
"""Files that join the site under their own path in the repository; the pages of docs/ are its root."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
HOST = r"""["']?(?:https?:)?//"""
LOADED = re.compile(
    rf"<(?:script|img|iframe|source)\b[^>]*\bsrc={HOST}"
    rf"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|icon|preconnect))[^>]*\bhref={HOST}"
    rf"|url\({HOST}|@import\s+{HOST}"
)
"""What makes a browser ask another host."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages outside docs/, and the recipes and pictures that they show."""
    beside = [
        path.relative_to(ROOT).as_posix() for end in ("yaml", "png") for path in (ROOT / "recipes").glob(f"*.{end}")
    ]
    for name in (*OUTSIDE, *beside):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the repository has them become links as the site has them; code is left alone."""
    source = page.file.src_uri
    home = posixpath.dirname(source if source in OUTSIDE else f"docs/{source}")

    def moved(link: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(home, link[1]))
        return posixpath.relpath(there.removeprefix("docs/"), posixpath.dirname(source) or ".")

    parts = re.split(r"(^```.*?^```$|`[^`\n]*`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if place % 2 else LINK.sub(moved, part) for place, part in enumerate(parts))


def on_post_build(config: MkDocsConfig) -> None:
    """Raises `PluginError` if a page or style sheet of the built site loads something from another host."""
    pages = (path for end in ("html", "css") for path in Path(config.site_dir).rglob(f"*.{end}"))
    faults = [f"{path}: {found[0]}" for path in pages if (found := LOADED.search(path.read_text(encoding="utf-8")))]
    if faults:
        raise PluginError("the site loads from elsewhere:\n  " + "\n  ".join(faults))
