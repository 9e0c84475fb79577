"""Self-instruct's tasks: one instruction with several instances, each with an input and an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats import alpaca
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.options import DEFAULT, ReadOptions

NAME = "self_instruct"
SUMMARY = "Self-instruct's tasks: {instruction, instances: [{input, output}]}; each instance is a conversation."

Record = Mapping[str, object]


def recognises(record: Record) -> bool:
    """Return whether a record has an instruction with instances."""
    return "instruction" in record and isinstance(record.get("instances"), list)


def parse(record: Record) -> Conversation:
    """Read the first instance."""
    return parse_all(record, DEFAULT)[0]


def parse_all(record: Record, _: ReadOptions) -> Sequence[Conversation]:
    """Read each instance with the keys of the task; raises RecordError for a task without instances."""
    instances = record["instances"]
    assert isinstance(instances, list)
    if not instances:
        raise RecordError("no_messages", "'instances' is empty", turns.preview(record["instruction"]))
    task = {key: value for key, value in record.items() if key != "instances"}
    return [_conversation(task, instance, index) for index, instance in enumerate(instances)]


def _conversation(task: Record, instance: object, index: int) -> Conversation:
    if not isinstance(instance, dict) or "output" not in instance:
        found = turns.quote_keys(list(instance)) if isinstance(instance, dict) else turns.describe_type(instance)
        raise RecordError("bad_turn", f"instance {index} has no 'output': {found}", turns.preview(instance))
    shared = instance.keys() & task.keys() - {"instruction"}
    if "instruction" in instance or shared:
        reason = f"instance {index} repeats {turns.quote_keys(sorted(shared) or ['instruction'])} of its task"
        raise RecordError("bad_turn", reason, turns.preview(instance))
    return alpaca.parse({**task, **instance})


FORMATS = (
    Format(
        NAME,
        SUMMARY,
        recognises,
        parse,
        writes=False,
        parse_all=parse_all,
        requires=("instruction", "instances"),
        turn_keys=frozenset({"input", "output"}),
    ),
)
