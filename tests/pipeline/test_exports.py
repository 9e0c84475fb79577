"""`clean` on whole exports: their zip or folder, in several files, with what is beside the chats."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.analysis import conversations
from curate.analysis.selection import show
from curate.dataset.curated_set import CuratedSet, open_set

# An answer that quotes the markup of ChatGPT's page, and one with entities: text, since exports have no HTML.
MARKUP = '<div class="markdown prose w-full break-words"><p>Rye &amp; wheat</p></div>'
PROMPT = "<div class='whitespace-pre-wrap'>What does this say &amp; mean?</div>"


def node(key: str, parent: str, role: str, text: str) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]}
    return {"id": key, "parent": parent, "message": {"author": {"role": role}, "content": content, "end_turn": True}}


def chat(number: int) -> dict[str, Any]:
    context = {"content_type": "user_editable_context", "user_profile": "Bakes.", "user_instructions": "Be brief."}
    private = node("p", "root", "user", "")
    private["message"]["content"] = context
    nodes = [private, node("u", "p", "user", f"{PROMPT} {number}"), node("a", "u", "assistant", f"{MARKUP} {number}")]
    mapping = {"root": {"id": "root"}, **{item["id"]: item for item in nodes}}
    return {"title": "t", "conversation_id": f"c{number}", "mapping": mapping, "current_node": "a"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in the shape of 2026: its chats in two files."""
    file = tmp_path_factory.mktemp("export") / "export.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for part in range(2):
            chats = [chat(number) for number in range(5 * part, 5 * part + 5)]
            archive.writestr(f"conversations-00{part}.json", json.dumps(chats))
        archive.writestr("export_manifest.json", "{}")
        archive.writestr("user.json", '{"id": "user-1", "email": "a@b.example"}')
        archive.writestr("chat.html", "<html></html>")
    return file


@pytest.fixture(scope="module")
def curated(export: Path, tiny_tokenizer: str) -> CuratedSet:
    """The set of the export, with custom instructions as system messages, from a strict run."""
    target = export.parent / "set"
    curate.clean(export, target, custom_instructions=True, strict=True, tokenizer=tiny_tokenizer)
    return open_set(target)


def test_every_chat_of_every_part_is_kept_and_the_rest_is_named(curated: CuratedSet) -> None:
    counts = curated.manifest.counts
    assert (counts.read, counts.kept, counts.rejected) == (10, 10, 0)
    assert {file.name: file.reason for file in curated.manifest.unread} == dict.fromkeys(
        (f"export.zip/{name}" for name in ("export_manifest.json", "user.json", "chat.html")),
        "is a part of an export that holds no chats",
    )
    assert not curated.manifest.warnings


def test_neither_prompts_nor_answers_are_taken_for_html(curated: CuratedSet) -> None:
    rows = curated.conversations().sort("source_file", "source_index").collect()
    assert [[message["content"] for message in messages] for messages in rows["messages"]] == [
        ["Bakes.\n\nBe brief.", f"{PROMPT} {number}", f"{MARKUP} {number}"] for number in range(10)
    ]
    assert "html_to_markdown" not in rows["edit_names"].explode().to_list()


def test_the_changes_are_shown_against_the_record_as_it_was_read(curated: CuratedSet) -> None:
    view = show("c3", curated.path)[0]
    assert [change.changed for change in conversations.diff_record(curated, view)] == [False, False, False]


def test_both_exports_are_read_from_one_folder(tmp_path: Path, tiny_tokenizer: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "conversations.json").write_text(json.dumps([chat(1)]))
    turns = [
        {"uuid": "1", "sender": "human", "text": "How long does rye rise in the cold?"},
        {"uuid": "2", "sender": "assistant", "text": "Twelve to eighteen hours."},
    ]
    claude = {"uuid": "k", "name": "Rye", "chat_messages": turns}
    (tmp_path / "in" / "claude.json").write_text(json.dumps({"conversations": [claude, {**claude, "uuid": "l"}]}))
    curate.clean(tmp_path / "in", tmp_path / "set", tokenizer=tiny_tokenizer)
    rows = open_set(tmp_path / "set").conversations().collect()
    assert sorted(rows["source_id"].to_list()) == ["c1", "k"], "the second of Claude's chats is a copy"
    assert rows.filter(pl.col("source_id") == "k")["messages"].list.len().to_list() == [2]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_ratings_beside_the_chats_make_preference_pairs_and_labels(
    tmp_path: Path, tiny_tokenizer: str, form: str
) -> None:
    good, bad = chat(1), chat(2)
    good["mapping"]["b"] = node("b", "u", "assistant", "Another answer.")
    for key, value in (("good", good), ("bad", bad)):
        value["mapping"][key] = {**value["mapping"].pop("a"), "id": key}
        value["current_node"] = key
    ratings = [{"id": "good", "rating": "thumbs_up"}, {"id": "bad", "rating": "thumbs_down"}, {"id": "x"}]
    files = {"conversations.json": [good, bad], "message_feedback.json": ratings}
    source = tmp_path / ("in.zip" if form == "zip" else "in")
    if form == "zip":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, json.dumps(content))
    for name, content in files.items() if form == "folder" else ():
        source.mkdir(exist_ok=True)
        (source / name).write_text(json.dumps(content))
    curate.clean(source, tmp_path / "set", tokenizer=tiny_tokenizer)
    curated = open_set(tmp_path / "set")
    row = curated.conversations().collect().row(0, named=True)
    assert [message["content"] for message in row["rejected_answer"]] == ["Another answer."]
    assert curated.rejected().collect()["rule"].to_list() == ["bad_label"]
    converted = curate.convert(source, tmp_path / "out.jsonl", to="jsonl")
    [line] = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [message["content"] for message in json.loads(line)["rejected_answer"]] == ["Another answer."]
    assert converted.left_out == {"bad_label": 1}
    assert curate.stats(source, tokenizer=tiny_tokenizer).header.kept == 1
