"""Which steps of its chapters a run leaves out, and why: what a run tells the chapters it opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from xenlab.chapter.chapter import Chapter

Verb = TypeVar("Verb", bound=Callable[..., None])

VARIABLE = "XENLAB_STEPS"
"""The variable of the environment by which a run tells its chapters (`Selected.text`)."""


@dataclass(frozen=True)
class Selected:
    """The steps that are left out, by their numbers, each with the reason.

    ``skip`` are not even looked at. ``look`` come before a step that is wanted: they are looked at,
    and nothing after them in their chapter is changed unless they hold.
    """

    skip: Mapping[str, str] = field(default_factory=dict)
    look: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """It as a variable holds it, "" where nothing is left out."""
        return json.dumps(asdict(self)) if self.skip or self.look else ""

    @staticmethod
    def of_text(text: str) -> Selected:
        """What `text` has made; all steps of ""."""
        return Selected(**json.loads(text)) if text else Selected()


def selectable(verb: Verb) -> Verb:
    """A verb whose step a run may leave out: it is recorded then, with the reason."""

    @wraps(verb)
    def chosen(chapter: Chapter, title: str, *given: Any, **more: Any) -> None:
        reason = chapter.selected.skip.get(title.split()[0])
        if reason is None:
            verb(chapter, title, *given, **more)
        else:
            chapter.skip(title, reason)

    return cast(Verb, chosen)
