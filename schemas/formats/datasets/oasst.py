"""OpenAssistant's trees: a prompt with several replies, each with several of its own, ranked by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import is_false, is_true, to_number
from curate.schemas.reading.options import DEFAULT, ReadOptions

NAME, ROWS_NAME = "oasst", "oasst_rows"
SUMMARY = (
    "OASST's trees: {message_tree_id, prompt: {text, role, rank, replies}}; the best path, or all with --branches."
)
ROWS_SUMMARY = "OASST's flat rows: {message_id, parent_id, text, role, rank}; the rows of a file are read as trees."

ROWS_RULE = "tree_row"
ROWS_KEY = "tree_rows"  # of the record that the rows of one tree become
_USED = frozenset({"message_tree_id", "prompt"})
_NODE_KEYS = ("text", "role", "replies")

Node = Mapping[str, object]


def recognises(record: Node) -> bool:
    """Return whether a record is a tree of messages, or its first message."""
    prompt = _root(record)
    return isinstance(prompt, dict) and "text" in prompt and "replies" in prompt


def _root(record: Node) -> object:
    """Return the first message of a tree: under `prompt`, or the record itself if it has replies."""
    return record if "message_id" in record and record.get("replies") else record.get("prompt")


def recognises_row(record: Node) -> bool:
    """Return whether a record is one message of a tree."""
    return "message_id" in record and "parent_id" in record and "text" in record and "role" in record


def recognises_rows(record: Node) -> bool:
    """Return whether a record has the rows of one tree, or is one of them."""
    return isinstance(record.get(ROWS_KEY), list) or recognises_row(record)


def parse_row(record: Node) -> Conversation:
    """Read the best path of the rows of a tree; raises RecordError for a row by itself, whose answer is another."""
    return parse_rows(record, DEFAULT)[0]


def parse_rows(record: Node, options: ReadOptions) -> Sequence[Conversation]:
    """Read the rows of a tree as the tree that they are; raises RecordError for a row by itself."""
    rows = record.get(ROWS_KEY)
    if not isinstance(rows, list):
        name, parent = (turns.preview(record.get(key)) for key in ("message_id", "parent_id"))
        reason = f"no rows near it link message {name!r} (parent {parent!r}) to the first message of its tree"
        advice = "one is missing, has an id twice, or is too far away: sort the rows by tree and date"
        raise RecordError(ROWS_RULE, f"{reason}; {advice}", turns.preview(record.get("text")))
    others = {key: value for key, value in record.items() if key != ROWS_KEY}
    return parse_all({**others, "prompt": _link(rows)}, options)


def _link(rows: Sequence[object]) -> Node:
    """Return the first message, with the others as its replies; raises RecordError for rows that are not one tree."""
    nodes: dict[str, dict[str, Any]] = {
        str(row["message_id"]): {**row, "replies": []} for row in rows if isinstance(row, dict) and _is_node(row)
    }
    roots: list[dict[str, object]] = []
    for node in nodes.values():
        parent = nodes.get(str(node["parent_id"]))
        (roots if parent is None else parent["replies"]).append(node)
    if len(roots) != 1 or len(nodes) != len(rows):
        reason = f"the {len(rows)} rows are not one tree: {len(roots)} of them answer no other"
        raise RecordError(ROWS_RULE, reason, turns.preview(rows))
    return roots[0]


def _is_node(row: Node) -> bool:
    return recognises_row(row) and row["message_id"] is not None


def parse(record: Node) -> Conversation:
    """Read the best path of a tree."""
    return parse_all(record, DEFAULT)[0]


def parse_all(record: Node, options: ReadOptions) -> Sequence[Conversation]:
    """Read the best path of a tree, or with `branches` every path that ends with an answer.

    Deleted messages, and those that reviewers refused, are on no path, and neither is what follows them. Raises
    RecordError if no answer is left.
    """
    prompt = _root(record)
    assert isinstance(prompt, dict)
    paths = _answered_paths(prompt)
    if not paths:
        reason = "no message of the tree has an answer that was neither deleted nor refused by reviewers"
        raise RecordError("no_messages", reason, turns.preview(prompt.get("text")))
    total = _count(prompt)
    seen: set[int] = set()  # messages of earlier paths, by identity: their answers are trained on once
    return [_conversation(record, path, total, seen) for path in (paths if options.branches else paths[:1])]


def _answered_paths(root: Node) -> list[list[Node]]:
    """Return the paths from the root to each answer that no other answer follows, the best first."""
    paths: dict[int, list[Node]] = {}  # by the identity of their last message
    open_paths = [[root]] if _is_usable(root) else []
    while open_paths:
        path = open_paths.pop()
        if replies := _replies(path[-1]):
            open_paths += [[*path, reply] for reply in reversed(replies)]
            continue
        while path and path[-1].get("role") != "assistant":
            path = path[:-1]
        if path:
            paths.setdefault(id(path[-1]), path)
    inner = {id(node) for path in paths.values() for node in path[:-1]}
    return [path for last, path in paths.items() if last not in inner]


def _replies(node: Node) -> list[Node]:
    """Return the usable replies to a message by rank, the best first; those without a rank follow in their order."""
    replies = node.get("replies")
    usable = (
        [reply for reply in replies if isinstance(reply, dict) and _is_usable(reply)]
        if isinstance(replies, list)
        else []
    )
    return sorted(usable, key=_rank)


def _rank(node: Node) -> float:
    number = to_number(node.get("rank"))
    return float("inf") if number is None else number


def _is_usable(node: Node) -> bool:
    return not is_true(node.get("deleted")) and not is_false(node.get("review_result"))


def _count(root: Node) -> int:
    """Return the number of messages of a tree."""
    count, nodes = 0, [root]
    while nodes:
        count += 1
        replies = nodes.pop().get("replies")
        nodes += [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
    return count


def _conversation(record: Node, path: Sequence[Node], total: int, seen: set[int]) -> Conversation:
    conversation = Conversation(None, [])
    source_id = record.get("message_tree_id") or path[0].get("message_id")
    conversation.source_id = turns.read_source_id(conversation, source_id)
    turns.read_messages(conversation, [_turn(node) for node in path], "role", "content")
    for message, node in zip(conversation.messages, path, strict=False):
        message.train = message.train and id(node) not in seen
    seen.update(map(id, path))
    turns.read_other_keys(conversation, {} if path[0] is record else record, _USED)
    if left_out := total - len(path):
        conversation.edit("other_replies", None, f"{left_out} of {total} messages", "", left_out)
    return conversation


def _turn(node: Node) -> dict[str, object]:
    """Return the turn of a message; its other keys stay with it."""
    others = {key: value for key, value in node.items() if key not in _NODE_KEYS}
    role = "user" if node.get("role") == "prompter" else node.get("role")
    return {"role": role, "content": node.get("text"), **others}


_ROW = ("message_id", "parent_id", "text", "role")
FORMATS = (
    Format(
        NAME,
        SUMMARY,
        recognises,
        parse,
        writes=False,
        parse_all=parse_all,
        requires=("message_tree_id", "prompt"),
        holds="an object with text and replies",
    ),
    Format(ROWS_NAME, ROWS_SUMMARY, recognises_rows, parse_row, writes=False, parse_all=parse_rows, requires=_ROW),
)
