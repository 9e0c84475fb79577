"""The conversation that curate works on, one module for each file format, and prompt templates."""

from __future__ import annotations

from curate.schemas.conversation import ROLES, Conversation, Edit, Message, Role

__all__ = ["ROLES", "Conversation", "Edit", "Message", "Role"]
