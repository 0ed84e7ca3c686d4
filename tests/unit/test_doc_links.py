"""No link of the pages is dead, and the README leads to every page of the guide."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
MADE = {DOCS / "2006.md", DOCS / "chapters" / "index.md"}
"""The pages that docs/collect.py makes whole; tests/unit/test_doc_pages.py sees them made."""
GUIDE = [path for path in WRITTEN if path.parent == DOCS and path not in MADE]


def without_code(text: str) -> str:
    """Markdown without its code, where a bracket is no link."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def links(path: Path) -> list[str]:
    """Where the links and pictures of a page lead to on this machine."""
    found = re.findall(r"\]\(<?([^)\s>]+)>?\)", without_code(path.read_text()))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


LINKS = [(page, link) for page in WRITTEN if page not in MADE for link in links(page)]


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.name} {link}" for page, link in LINKS]
)
def test_a_link_leads_to_what_is_there(page: Path, link: str) -> None:
    place, _, anchor = unquote(link).partition("#")
    target = (page.parent / place).resolve() if place else page
    assert target in MADE or target.exists()
    if anchor:
        assert anchor in headings(target)


def test_the_links_of_the_readme_need_no_page_that_is_made() -> None:
    at = ROOT / "README.md"
    assert not {(ROOT / link.partition("#")[0]).resolve() for link in links(at)} & MADE


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_readme_and_index_lead_to_every_page(page: Path) -> None:
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text()
    named = re.search(r"```\{toctree\}\n:hidden:\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    assert named and (page.stem in named[1].split() or page.stem == "index")
