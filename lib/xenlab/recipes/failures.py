"""Chapters 12 and 15: no service of dom0, or of a guest that runs, has failed."""

from __future__ import annotations

from xenlab.chapter import Chapter
from xenlab.resources.base import Resource
from xenlab.resources.elsewhere import Elsewhere
from xenlab.resources.until import Until


def none_failed(book: Chapter) -> dict[str, Resource]:
    """The condition that no service has failed, in dom0 and in each guest that runs."""
    none = book.services.none_failed()
    found: dict[str, Resource] = {"dom0": none}
    for domain in book.site.domains:
        inside = Elsewhere(domain.name, book.guest(domain.name), none)
        found[domain.name] = Until((inside,), book.toolstack.gone(domain.name))
    return found
