"""What a site's file names and does not hold: secrets, and the URLs of who is told of a run."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xenlab.site.types import Text

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class SecretReference(BaseModel):
    """Where a secret is found that must not be recorded: its value has no place in a file."""

    model_config = _STRICT

    env: Text = Field(
        "", description="the environment variable that holds it", examples=["MIRROR_LOGIN"]
    )
    file: Text = Field(
        "",
        description="a file, each line of which is a secret; a path that begins with / or ~/",
        examples=["~/.config/castle/vault"],
    )

    @model_validator(mode="before")
    @classmethod
    def _is_reference(cls, value: object) -> object:
        # what stands here may be the secret itself: no message repeats it
        if not isinstance(value, dict) or not set(value) <= set(cls.model_fields):
            raise ValueError("must be {env: NAME} or {file: PATH}: a secret is named, not written")
        return value

    @model_validator(mode="after")
    def _names_one(self) -> SecretReference:
        self._require_reference()
        return self

    def _require_reference(self) -> None:
        if bool(self.env) == bool(self.file):
            raise ValueError("must name one thing: {env: NAME} or {file: PATH}")
        if self.env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.env):
            raise ValueError("must be the name of an environment variable, as {env: NAME}")
        if self.file and not self.file.startswith(("/", "~/")):
            raise ValueError("must be a path that begins with / or ~/, as {file: PATH}")


class Notified(SecretReference):
    """Who is told how a run goes: by a URL (named, as it holds tokens), mail or a command."""

    mail: Text = Field("", description="a mail address", examples=["admin@example.org"])
    command: Text = Field(
        "",
        description="a command of a shell, which is given the words",
        examples=["logger -t xenlab"],
    )

    @model_validator(mode="before")
    @classmethod
    def _is_reference(cls, value: object) -> object:
        # a URL that stands here is a secret: no message repeats it
        if not isinstance(value, dict) or not set(value) <= set(cls.model_fields):
            raise ValueError(
                "must be {env: NAME} or {file: PATH} of a URL, {mail: ADDRESS} or {command: WORDS}"
            )
        return value

    @model_validator(mode="after")
    def _names_one(self) -> Notified:
        if self.mail or self.command:
            if sum(map(bool, (self.env, self.file, self.mail, self.command))) > 1:
                raise ValueError("must name one thing: env, file, mail or command")
        else:
            self._require_reference()
        return self


BecomeBy = Annotated[
    Literal["", "sudo", "doas", "su"],
    Field(description="by what a user that is not root becomes root", examples=["sudo"]),
]
BecomePassword = Annotated[
    SecretReference | None,
    Field(
        description="where the password is found that sudo or su asks for",
        examples=[{"env": "CASTLE_SUDO"}],
    ),
]
