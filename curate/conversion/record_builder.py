"""Turn conversations into the records of a format, and name what the records have no place for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from curate.conversion.writers import Entry, native_record
from curate.errors import InputError
from curate.schemas.conversation import Conversation
from curate.schemas.formats import Format, alpaca, native, trl
from curate.schemas.writing import WriteOptions, find_lost


@dataclass
class RecordBuilder:
    """Builds the records of one format; the first conversation chooses the shape of trl's records, unless it is set."""

    form: Format
    options: WriteOptions
    seen: set[str] = field(default_factory=set)  # what any of the conversations has, see `_features`

    def __call__(self, entry: Entry) -> Sequence[dict[str, object]]:
        """Return the records of an entry; raises RecordError for one that the format cannot represent."""
        chat = entry.conversation
        if self.form.name == native.NAME:
            return [native_record(entry)]
        if self.form.name == trl.NAME and not self.options.shape:
            self.options = replace(self.options, shape=trl.choose_shape(chat))
        assert self.form.dump_all or self.form.dump
        records = self.form.dump_all(chat, self.options) if self.form.dump_all else [self.form.dump(chat)]  # type: ignore[misc]
        for record in records:
            if "id" in record and record["id"] is None:
                record["id"] = content_id(chat)
        self.seen |= _features(chat)
        for record in records:
            if "history" in record:
                self.seen.add("history")
        return records

    def find_lost(self, entry: Entry) -> list[str]:
        """Return the fields of an entry that the records have no place for."""
        kept = "rejected_answer" if self.options.shape == trl.PREFERENCE else None
        return find_lost(entry.conversation, [name for name in sorted(self.form.lacks) if name != kept])


def _features(conversation: Conversation) -> set[str]:
    """Return what trainers must know of a conversation: roles, tools, calls, and answers that are not trained on."""
    messages = conversation.messages
    found: set[str] = {message.role for message in messages}
    if conversation.tools is not None:
        found.add("tools")
    # Lists, since `any` of a generator takes twice as long.
    if any([message.tool_calls is not None for message in messages]):  # noqa: C419
        found.add("calls")
    if any([not m.train and m.role == "assistant" for m in messages]):  # noqa: C419
        found.add("untrained")
    return found


def check_options(form: Format, options: WriteOptions) -> None:
    """Raise InputError for an option that has no effect on the format, or an unknown shape."""
    if options.history and form.name != alpaca.NAME:
        raise InputError(f"history has no effect on {form.name!r}; it is for 'alpaca'")
    if options.shape and form.name != trl.NAME:
        raise InputError(f"a shape has no effect on {form.name!r}; it is for 'trl'")
    if options.shape and options.shape not in trl.SHAPES:
        raise InputError(f"unknown shape {options.shape!r}; known: {', '.join(trl.SHAPES)}")


def content_id(conversation: Conversation) -> str:
    """Return an id for a conversation without one, from a hash of its content."""
    data = json.dumps([[message.role, message.content] for message in conversation.messages])
    return f"c-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
