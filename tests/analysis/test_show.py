"""`curate show`: selecting conversations, rendering them with tokens, mask and changes, and paging with keys."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import curate
from curate.analysis import conversations, diff
from curate.analysis.conversations import ConversationView
from curate.cli import cli
from curate.dataset.curated_set import CuratedSet
from curate.display import text as terminal
from curate.errors import CurateError, SetError
from curate.rendering.factory import load_set_tokenizer, make_renderer
from curate.rendering.mask_view import MaskViewer, load_viewer, view_rows
from curate.rendering.renderer import Renderer
from curate.report.html.conversation import render_conversation as html_of
from curate.report.terminal.conversations import SafeMarkdown, render_conversation, render_diff, render_mask
from curate.schemas.conversation import Message
from tests.support import ROOT
from tests.support.small_set import LOST, kept, lost, write_set

HOSTILE = "<script>alert(1)</script> \x1b[31m[bold red]\u202e ![x](http://evil.example/i.png) [t](http://evil.example/)"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> CuratedSet:
    folder = tmp_path_factory.mktemp("show") / "curated"
    curate.clean(ROOT / "examples/sharegpt_dump.json", folder, workers=1)
    return curate.open_set(folder)


@pytest.fixture(scope="module")
def renderer(example: CuratedSet) -> Renderer:
    return make_renderer(example.manifest.template, load_set_tokenizer(example.manifest, bulk=False))


@pytest.fixture(scope="module")
def viewer(example: CuratedSet) -> MaskViewer:
    loaded, reason = load_viewer(example.manifest)
    assert loaded is not None, reason
    return loaded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("show") / "set")


def rendered(renderable: object, width: int = 80) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(renderable)
    return file.getvalue()


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["show", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_rejected_answer_is_shown_after_the_messages() -> None:
    answer = [{"role": "assistant", "content": "No idea."}]
    view = ConversationView(
        "a", "d", 0, (Message("user", "hi"), Message("assistant", "yes")), {"rejected_answer": answer}
    )
    assert "assistant · rejected answer\n▌ No idea." in rendered(render_conversation(view))
    assert '<span class="note">rejected answer</span>' in html_of(view)


# ---- selection

SELECTIONS: dict[str, tuple[Callable[[Path], curate.Selection], list[str]]] = {
    "all": (lambda s: curate.show((), s), ["abc_0", "abc_1", "deadbeef", "twice"]),
    "a piece": (lambda s: curate.show("abc_1", s), ["abc_1"]),
    "all pieces of a record": (lambda s: curate.show("abc", s), ["abc_0", "abc_1"]),
    "by place": (lambda s: curate.show("dump.json:1", s), ["deadbeef"]),
    "several, in the order named": (lambda s: curate.show(["twice", "abc_0"], s), ["abc_0", "twice"]),
    "kept and rejected of one id": (lambda s: curate.show("twice", s), ["twice"]),
    "a rejected one": (lambda s: curate.show("copy", s), ["copy"]),
    "where": (lambda s: curate.show((), s, where="tokens > 100 and language = 'ko'"), ["deadbeef"]),
    "search": (lambda s: curate.show((), s, search="HELLO"), ["abc_0", "abc_1", "deadbeef", "twice"]),
    "search for nothing there": (lambda s: curate.show((), s, search="hel+o"), []),
    "rejected": (lambda s: curate.show((), s, rejected=True), ["abc", "copy", "twice", "dump.json:5"]),
    "rejected by a rule": (lambda s: curate.show((), s, rejected="unreadable"), ["dump.json:5"]),
    "rejected where": (lambda s: curate.show((), s, rejected=True, where="scope = 'exchange'"), ["abc"]),
    "rejected with a text": (lambda s: curate.show((), s, rejected=True, search="VERY long"), ["abc"]),
    "rejected of an id": (lambda s: curate.show("abc", s, rejected=True), ["abc"]),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_conversations_are_selected(small: Path, case: str) -> None:
    find, names = SELECTIONS[case]
    selection = find(small)
    assert sorted(view.id for view in selection) == sorted(names)
    assert len(selection) == len(names)


def test_text_is_found_literally_and_in_json_escapes(tmp_path: Path) -> None:
    written = json.dumps({"conversations": [{"from": "human", "value": 'say "ü"\n'}]}).encode()
    folder = write_set(tmp_path / "set", [], [lost(0, "min_messages", record=written)])
    assert [len(curate.show((), folder, rejected=True, search=text)) for text in ('"Ü"', "say", "you")] == [1, 1, 0]


def test_a_sample_depends_on_its_seed_and_has_no_repeats(small: Path) -> None:
    draw = [[view.id for view in curate.show((), small, random=3, seed=seed)] for seed in (1, 1, 2, 3, 4)]
    assert draw[0] == draw[1]
    assert len({tuple(names) for names in draw}) > 1
    assert all(len(set(names)) == 3 for names in draw)
    assert len(curate.show((), small, random=100)) == 4


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such id": (lambda s: curate.show("deadbeaf", s), "no record 'deadbeaf'"),
    "no such rule": (lambda s: curate.show((), s, rejected="unreadible"), "did you mean 'unreadable'?"),
    "ids and a search": (lambda s: curate.show("abc", s, search="x"), "not both"),
    "nothing of it rejected": (lambda s: curate.show("deadbeef", s, rejected=True), "was rejected"),
    "no set": (lambda s: curate.show((), s / "nowhere"), "no curated set at"),
    "a typo": (lambda s: curate.show((), s, where="tokens >"), "unable to parse"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_selection_without_matches_gets_one_clear_line(small: Path, case: str) -> None:
    find, message = WRONG[case]
    with pytest.raises(CurateError) as error:
        find(small)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_set_gets_one_clear_line(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    selection = curate.show((), folder)
    (folder / "conversations.parquet").write_bytes(b"PAR1 is not what it was")
    for look in (lambda: list(selection), lambda: curate.show((), folder)):
        with pytest.raises(SetError, match="is damaged"):
            look()
    (folder / "conversations.parquet").unlink()
    with pytest.raises(SetError, match=r"conversations\.parquet is missing"):
        curate.show((), folder)


def test_distant_rows_are_read_in_the_requested_order(tmp_path: Path) -> None:
    rows = [kept(i, f"c{i}") for i in range(3000)]
    curated = curate.open_set(write_set(tmp_path / "set", rows))
    wanted = [2999, 0, 1500, 1501, 0]
    assert [view.id for view in conversations.read_kept(curated, wanted)] == [f"c{i}" for i in wanted]


# ---- tokens and mask


def test_the_tokens_of_the_messages_sum_to_those_of_the_piece(example: CuratedSet, viewer: MaskViewer) -> None:
    for view in curate.show((), example.path):
        assert sum(viewer.count_message_tokens(view.messages)) == view.facts["tokens"], view.id


def test_the_mask_covers_exactly_the_answers_and_their_stop_tokens(example: CuratedSet, renderer: Renderer) -> None:
    for view in curate.show((), example.path):
        [mask] = view_rows(renderer, view.messages)
        answers = [message.content for message in view.messages if message.role == "assistant"]
        assert [text for text, trained in mask.text if trained] == [f" {answer}<|end_of_text|>" for answer in answers]
        assert (mask.supervised, mask.tokens) == (view.facts["answer_tokens"], view.facts["tokens"])


def test_a_cut_answer_has_no_trained_stop_token(renderer: Renderer) -> None:
    [mask] = view_rows(renderer, [Message("user", "Hi"), Message("assistant", "Hello", stop=False)])
    assert mask.text[1:] == ((" Hello", True), ("<|end_of_text|>", False))


def test_the_mask_is_shown_in_brackets_without_colours(example: CuratedSet, renderer: Renderer) -> None:
    view = curate.show("xPY9JiX", example.path)[0]
    page = rendered(render_mask(view, view_rows(renderer, view.messages)), 200)
    assert "ASSISTANT:[[ The capital of Poland is **Warsaw**.<|end_of_text|>]]USER:" in page
    assert "[[trained on]]: 30 of 84 tokens" in page


def test_the_mask_is_shown_for_the_template_and_the_choices_that_are_given(tmp_path: Path) -> None:
    call = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "What does the tool say, please?"},
        {"role": "assistant", "content": "", "reasoning_content": "I call it.", "tool_calls": call},
        {"role": "tool", "content": "seven", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It says that it is seven."},
    ]
    (tmp_path / "dump.json").write_text(json.dumps([{"id": "a", "messages": messages, "tools": tools}]))
    curate.clean(tmp_path / "dump.json", tmp_path / "set", workers=1, template="llama3")
    shows = ("--set", str(tmp_path / "set"), "--mask")
    code, out, _ = invoke(*shows)
    assert code == 0
    assert "left out of training: hidden_tools" in out
    code, out, _ = invoke(*shows, "--template", "llama3.1", "--reasoning", "mask")
    assert code == 0
    assert "left out" not in out
    assert '"name": "f"' in out
    assert "I call it.\n</think>\n" in out and "I call it.[[" not in out  # what closes it is masked too
    assert invoke("--set", str(tmp_path / "set"), "--reasoning", "mask")[0] == 2


def test_without_its_tokenizer_a_conversation_is_shown_without_counts(small: Path) -> None:
    code, out, err = invoke("deadbeef", "--set", str(small))
    assert code == 0
    assert "hello" in out
    assert err == "no token counts for messages: the tokenizer 'llama3' is not the one that the set was cleaned with\n"
    code, out, err = invoke("deadbeef", "--set", str(small), "--mask")
    assert (code, out) == (1, "")
    assert err.startswith("error: the mask cannot be shown: the tokenizer 'llama3'")


# ---- before and after


def test_a_diff_compares_the_original_record_with_the_kept_conversation(example: CuratedSet) -> None:
    view = curate.show("xPY9JiX", example.path)[0]
    changes = conversations.diff_record(example, view)
    assert [(c.role, c.changed, c.after is None) for c in changes] == [
        ("user", False, False),
        ("assistant", True, False),
        ("user", True, True),
        ("assistant", True, True),
        ("user", False, False),
        ("assistant", True, False),
    ]
    page = rendered(render_diff(view, changes, conversations.find_rejections(example, view)), 200)
    assert "[-<strong>-]{+**+}Warsaw[-</strong>-]{+**+}." in page
    assert "exchange rejected by rate_limit" in page
    assert "2 messages unchanged" in page


def test_every_record_has_a_diff_that_contains_all_kept_messages(example: CuratedSet) -> None:
    by_place: dict[str, list[str]] = {}
    for view in curate.show((), example.path):
        by_place.setdefault(view.place, []).extend(m.content for m in view.messages if m.role != "system")
    for view in curate.show((), example.path):
        after = "".join(
            c.after.content for c in conversations.diff_record(example, view) if c.after and c.role != "system"
        )
        assert after.replace("\n", "") == "".join(by_place[view.place]).replace("\n", "")


def test_a_set_without_originals_suggests_another_command(small: Path) -> None:
    code, _, err = invoke("deadbeef", "--set", str(small), "--diff")
    assert code == 1
    assert "without originals" in err
    assert "curate explain dump.json:1" in err


@given(st.text("ab <>/p\n&;é", max_size=60), st.text("ab *\n`é", max_size=60))
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    spans = diff.diff_words(before, after)
    assert "".join(text for kind, text in spans if kind != "new") == before
    assert "".join(text for kind, text in spans if kind != "gone") == after


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.sampled_from("abcd")), max_size=8), st.data()
)
def test_changes_hold_every_message_once_and_in_order(turns: list[tuple[str, str]], data: st.DataObject) -> None:
    before = [Message(role, text) for role, text in turns]  # type: ignore[arg-type]
    after = [message for message in before if data.draw(st.booleans())]
    changes = diff.changes(before, after)
    for messages, side in ((before, [c.before for c in changes]), (after, [c.after for c in changes])):
        shown = "\n\n".join(message.content for message in side if message)
        assert shown == "\n\n".join(message.content for message in messages)
    assert all(c.before.role == c.after.role for c in changes if c.before and c.after)


# ---- rendering


def test_a_rendered_answer_shows_all_its_text() -> None:
    page = rendered(
        SafeMarkdown(
            "# Head\n**b** `c` <kbd>x</kbd> <b>\n![alt](http://i.example/)\n[t](http://l.example/)\n\n1. one\n"
        )
    )
    for shown in ("Head", "<kbd>x</kbd>", "<b>", "![alt](http://i.example/)", "t (http://l.example/)", " 1 one"):
        assert shown in page
    assert "**" not in page


def test_code_is_coloured_in_a_terminal() -> None:
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, color_system="standard", width=60)
    out.print(SafeMarkdown("```python\ndef f(): return 'x'\n```"))
    assert "\x1b[94mdef\x1b[0m" in file.getvalue() or "\x1b[34mdef" in file.getvalue()


def test_text_in_a_conversation_cannot_control_the_terminal(tmp_path: Path) -> None:
    messages = [
        {"role": role, "content": HOSTILE, "name": "\x1b[2J", "tool_calls": "\x1b]0;t\x07", "train": True, "stop": True}
        for role in ("system", "user", "assistant", "tool")
    ]
    folder = write_set(tmp_path / "set", [kept(0, "\x1b[1mx", messages=messages, language="\x9b1m")])
    for arguments in ((), ("--raw",), ("--json",), ("--rejected",)):
        code, out, _ = invoke("--set", str(folder), *arguments)
        assert code == 0
        assert not set(out) & {"\x1b", "\x07", "\x9b", "\u202e"}, arguments
        assert "<script>alert(1)</script>" in out or arguments == ("--rejected",)


@given(st.text(max_size=200))
def test_any_text_renders(text: str) -> None:
    view = conversations.ConversationView("x", "f", 0, (Message("user", text), Message("assistant", text)), unread=text)
    assert all(cell_len(line) <= 40 for line in rendered(render_conversation(view), 40).split("\n"))


def test_a_rejected_record_shows_its_reason_and_contents(example: CuratedSet) -> None:
    _, out, _ = invoke("--set", str(example.path), "--rejected", "plugins", "--limit", "1")
    assert "rejected by plugins: made with plugins" in out
    assert "It was a Saturday" in out
    _, out, _ = invoke("--set", str(example.path), "--rejected", "not_a_record")
    assert "original record" in out
    _, out, _ = invoke("--set", str(example.path), "--rejected", "rate_limit")
    assert "exchange rejected by rate_limit" in out
    assert "And what do people pay with there?" in out


def test_each_rejected_exchange_of_a_record_shows_its_messages(tmp_path: Path) -> None:
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": f"turn {i}"} for i in range(6)]
    record = json.dumps({"id": "r", "conversations": turns}).encode()
    first = lost(0, "empty_answer", scope="exchange", message_range=[0, 2], record=record, source_id="r")
    second = {**first, "message_range": [4, 6], "record": None}
    views = list(curate.show((), write_set(tmp_path / "set", [], [first, second]), rejected=True))
    assert [[m.content for m in view.messages] for view in views] == [["turn 0", "turn 1"], ["turn 4", "turn 5"]]


def test_a_pipe_gets_ten_pieces_or_rejects_unless_limit_is_given(example: CuratedSet) -> None:
    _, out, err = invoke("--set", str(example.path))
    assert out.count("sharegpt_dump.json:") == 10
    assert err == "10 of 180 pieces; --limit 180 prints all\n"
    _, out, err = invoke("--set", str(example.path), "--limit", "30")
    assert (out.count("sharegpt_dump.json:"), err) == (30, "")
    _, _, err = invoke("--set", str(example.path), "--rejected")
    assert err.startswith("10 of ") and " rejects; --limit " in err
    assert invoke("--set", str(example.path), "--search", "no such words") == (0, "", "no conversation matches\n")


def test_json_is_a_list_with_tokens_and_rejections(example: CuratedSet) -> None:
    _, out, _ = invoke("--set", str(example.path), "--json", "--where", "language = 'ko'", "--limit", "2")
    first, second = json.loads(out)
    assert sum(first["turn_tokens"]) == first["facts"]["tokens"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"] * (len(second["messages"]) // 2)
    _, out, _ = invoke("--set", str(example.path), "--json", "--rejected", "plugins", "--limit", "1")
    assert json.loads(out)[0]["rejected"]["rule"] == "plugins"


def test_json_has_one_conversation_on_each_line_with_what_python_returns(example: CuratedSet) -> None:
    _, out, _ = invoke("--set", str(example.path), "--json", "--limit", "500")
    lines = out.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("[", "]", len(curate.show((), example.path)) + 2)
    for entry, view in zip(json.loads(out), curate.show((), example.path), strict=True):
        assert (entry["id"], entry["source_file"], entry["source_index"]) == (
            view.id,
            *view.place.split(":")[:1],
            view.source_index,
        )
        assert [message["content"] for message in entry["messages"]] == [message.content for message in view.messages]
        assert entry["facts"].keys() == view.facts.keys()
        assert entry["facts"]["tokens"] == view.facts["tokens"] == sum(entry["turn_tokens"])
        assert (entry["rejected"], entry["unread"]) == (None, None)


def test_json_escapes_what_controls_a_terminal(tmp_path: Path) -> None:
    message = {**kept(0, "x")["messages"][0], "content": HOSTILE + '"\\\x7f\x9b'}
    folder = write_set(tmp_path / "set", [kept(0, "x\u202e", messages=[message]), kept(1, "y")])
    _, out, _ = invoke("--set", str(folder), "--json")
    assert not set(out) & set("\x1b\u202e\x7f\x9b")
    assert [(entry["id"], entry["turn_tokens"]) for entry in json.loads(out)] == [("x\u202e", None), ("y", None)]
    assert json.loads(out)[0]["messages"][0]["content"] == message["content"]
    assert invoke("--set", str(folder), "--json", "--where", "tokens > 999")[1] == "[]\n"


@pytest.mark.slow
def test_workers_print_the_same_as_one_process(example: CuratedSet, tmp_path: Path) -> None:
    frame = example.conversations().collect()
    rows = pl.concat([frame] * 30).with_columns(pl.format("{}-{}", "id", pl.int_range(pl.len())).alias("id"))
    folder = shutil.copytree(example.path, tmp_path / "set")
    rows.write_parquet(folder / "conversations.parquet")
    _, out, _ = invoke("--set", str(folder), "--json", "--limit", "100000")
    _, few, _ = invoke("--set", str(folder), "--json", "--limit", "1000")
    assert out.splitlines()[1:1000] == few.splitlines()[1:1000]
    assert [entry["id"] for entry in json.loads(out)] == rows["id"].to_list()
    assert all(sum(entry["turn_tokens"]) == entry["facts"]["tokens"] for entry in json.loads(out))


def test_a_sample_is_printed_whole(example: CuratedSet) -> None:
    for form in ((), ("--json",)):
        _, out, err = invoke("--set", str(example.path), "--random", "30", "--seed", "1", *form)
        assert (out.count("sharegpt_dump.json"), err) == (30, "")
    _, out, _ = invoke("--set", str(example.path), "--random", "30", "--limit", "4", "--seed", "1", "--json")
    assert len(json.loads(out)) == 4


def test_many_conversations_are_read_in_one_pass_in_order(tmp_path: Path) -> None:
    rows = [kept(i, f"c{i}", tokens=i) for i in range(3000)]
    folder = write_set(tmp_path / "set", rows)
    selection = curate.show((), folder, where="tokens % 2 = 0")
    assert [view.id for view in selection] == [f"c{i}" for i in range(0, 3000, 2)]
    _, out, _ = invoke("--set", str(folder), "--json", "--where", "tokens % 2 = 0", "--limit", "1400")
    assert [entry["id"] for entry in json.loads(out)] == [f"c{i}" for i in range(0, 2800, 2)]
    picked = curate.show(["c2999", "c5"], folder)
    assert [view.id for view in picked] == ["c2999", "c5"]


def test_mask_and_diff_exclude_each_other(small: Path) -> None:
    code, _, err = invoke("--set", str(small), "--mask", "--diff")
    assert code == 2
    assert "exclude each other" in err


# ---- in a terminal


def in_terminal(arguments: list[str], keys: list[str], size: tuple[int, int] = (24, 80)) -> str:
    """Run `curate` in a pseudo-terminal, send each key when the output has settled, and return the output."""
    process, master = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        os.execv(sys.executable, [sys.executable, "-m", "curate", *arguments])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    printed = b""
    remaining = [*keys]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.3)[0]:
            try:
                block = os.read(master, 1 << 16)
            except OSError:  # it has ended
                break
            printed += block
            if not block:
                break
        elif remaining and b"q quit" in printed:
            os.write(master, remaining.pop(0).encode())
    else:
        os.kill(process, signal.SIGKILL)  # it waits for a key that is never sent
    _, status = os.waitpid(process, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0, printed.decode()
    return printed.decode()


def test_keys_page_through_conversations_and_the_screen_is_restored(example: CuratedSet) -> None:
    names = [view.id for view in curate.show((), example.path).head(3)]
    screens = in_terminal(["show", "--set", str(example.path)], ["n", "n", "p", "q"]).split("\x1b[H\x1b[J")[1:]
    shown = [next(name for name in names if name in screen) for screen in screens]
    assert shown == [names[0], names[1], names[2], names[1]]
    assert "1 of 180" in screens[0]
    assert screens[-1].endswith("\x1b[?1049l")


def test_a_long_conversation_scrolls_and_a_short_one_is_printed(tmp_path: Path) -> None:
    lines = "\n".join(f"line {i} of it" for i in range(100))
    message = {"role": "user", "content": lines, "name": None, "tool_calls": None, "train": True, "stop": True}
    folder = write_set(tmp_path / "set", [kept(0, "long", messages=[message]), kept(1, "short")], LOST)
    screens = in_terminal(["show", "long", "--set", str(folder)], [" ", "G", "g", "q"]).split("\x1b[H\x1b[J")[1:]
    assert ["line 0 of it" in s for s in screens] == [True, False, False, True]
    assert "line 30 of it" in screens[1]
    assert "line 99 of it" in screens[2]
    printed = in_terminal(["show", "short", "--set", str(folder)], [])
    assert "\x1b[?1049h" not in printed
    assert "hello" in printed
