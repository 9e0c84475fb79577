"""Checks of a set's values, which may have been changed by another program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from curate.errors import SetError
from curate.schemas.conversation import Role

ROLES = frozenset(get_args(Role))


def check_messages(roles: Iterable[str | None], nulls: int) -> None:
    """Raise SetError if a message of a set has no known role, or if `nulls`, the messages without a text, is not 0."""
    unknown = set(roles) - ROLES
    if unknown or nulls:
        problem = f"the role {sorted(map(str, unknown))[0]!r}" if unknown else "no text"
        raise _damaged(f"a message in its conversations has {problem}")


def check_conversations(nulls: int) -> None:
    """Raise SetError if `nulls`, the conversations of a set without messages, is not 0."""
    if nulls:
        raise _damaged("one of its conversations has no messages")


def _damaged(problem: str) -> SetError:
    return SetError(
        f"the set is damaged: {problem}; it was changed by another program, so make the set again with curate clean"
    )
