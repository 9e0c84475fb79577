"""What conversations look like: the shape curate works on, one module per file format, and prompt templates."""

from __future__ import annotations

from curate.schemas.conversation import ROLES, Conversation, Edit, Message, Role

__all__ = ["ROLES", "Conversation", "Edit", "Message", "Role"]
