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
    if not unknown and not nulls:
        return
    problem = f"the role {sorted(map(str, unknown))[0]!r}" if unknown else "no text"
    raise SetError(
        f"the set is damaged: a message in its conversations has {problem}; it was changed by another program, "
        "so make the set again with curate clean"
    )
