"""Follows the links of a built site that stay within it, and finds what it loads from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and the anchors that others may point at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what an element links to, loads and is called."""
        for key, value in attrs:
            if key in ("href", "src") and value is not None:
                self.links.append(value)
                if tag != "a":
                    self.loaded.append(value)
            elif key in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """Finds the links to files or anchors that do not exist, and what is loaded from elsewhere.

    Args:
        site: Folder of HTML files.

    Returns:
        A line for each: the page and the link.
    """
    pages = {
        file.resolve(): _Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")
    }
    broken = []
    for file, page in sorted(pages.items()):
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data" or file.name == "404.html":
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    broken.append(f"{file.relative_to(site.resolve())} loads {link}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            known = pages.get(target)
            if not target.is_file() or (known and unquote(parts.fragment) not in known.anchors):
                broken.append(f"{file.relative_to(site.resolve())} -> {link}")
    return broken
