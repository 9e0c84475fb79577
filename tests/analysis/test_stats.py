"""Statistics of sets and dumps: the numbers, the report, and errors for sets that cannot be read."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from curate import clean, compare, refilter, stats
from curate.analysis.recorded import read_recorded
from curate.analysis.selection import show
from curate.analysis.set_stats import histogram, measure_again
from curate.analysis.stats import Bin, Count, Duplicates, Share, Stats, Step, WindowFit
from curate.dataset import curated_set
from curate.dataset import manifest as manifests
from curate.dataset.manifest import decode
from curate.display import text as terminal
from curate.errors import CurateError, InputError, SetError
from curate.report.terminal import summary
from curate.report.terminal.stats import render_stats
from tests.support import ROOT
from tests.support.small_set import MANIFEST, kept, lost, write_manifest, write_set


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def rendered(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_the_header_describes_the_set(small: Path) -> None:
    header = stats(small).header
    assert (header.read, header.kept, header.tokens) == (6, 3, 1180)
    assert (header.recipe, header.tokenizer, header.template, header.window) == ("vicuna", "llama3", "vicuna", 2048)
    assert [(item.name, item.bytes) for item in header.inputs] == [("dump.json", 2_000_000)]


def test_the_flow_is_balanced_and_sorted_by_rejections(small: Path) -> None:
    flow = stats(small).flow
    assert flow.read == flow.kept + flow.rejected
    assert sum(step.first for step in flow.steps) == flow.rejected
    assert flow.steps[0] == Step("exact_duplicates", 1, 2)


def test_shares_are_counted_by_piece_with_their_tokens(small: Path) -> None:
    measured = stats(small)
    assert measured.languages == (Share("en", 2, 900), Share("ko", 1, 200), Share("unknown", 1, 80))
    assert measured.models == (Share("unknown", 3, 980), Share("gpt-4", 1, 200))
    assert measured.splits == (Share("train", 3, 880), Share("eval", 1, 300))
    assert measured.edits == (Count("html_to_markdown", 2), Count("chrome", 1))


def test_histograms_measure_tokens_turns_and_answers(small: Path) -> None:
    chats, tokens, turns, answers = stats(small).histograms
    assert (chats.name, chats.count, chats.maximum) == ("conversation_tokens", 3, 900)  # abc is 600 and 300
    assert (tokens.count, tokens.minimum, tokens.maximum, tokens.mean) == (4, 80, 600, 295.0)
    assert turns.percentiles["p50"] == 2
    assert answers.maximum == 250  # 500 tokens in the two answers of abc_0


def test_an_empty_set_has_statistics(tmp_path: Path) -> None:
    counts = dict.fromkeys(("read", "kept", "rejected", "rejected_exchanges", "pieces", "tokens"), 0)
    empty = stats(write_set(tmp_path / "set", [], [], {**MANIFEST, "counts": {**counts, "rules": {}, "edits": {}}}))
    assert empty.header.tokens == 0
    assert [item.bins for item in empty.histograms] == [(), (), ()]
    assert empty.duplicates == Duplicates(0, 0, 0, 0, None, 0, None, 0)
    assert (empty.training.steps, empty.training.trained_share) == (0, 0.0)
    assert "no conversations" in rendered(render_stats(empty), 80)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
def test_bins_hold_each_value_once_and_join_without_gaps(values: list[int]) -> None:
    bins = histogram("x", "x", "pieces", pl.Series(values, dtype=pl.Int64))
    assert sum(bin.count for bin in bins.bins) == len(values)
    assert len(bins.bins) <= 17
    for before, after in zip(bins.bins, bins.bins[1:], strict=False):
        assert after.low == before.high + 1
    for bin in bins.bins:
        assert bin.count == sum(bin.low <= value <= bin.high for value in values)


def test_a_long_tail_shares_the_last_bin() -> None:
    bins = histogram("x", "x", "pieces", pl.Series([*range(100), 10**6]))
    assert bins.bins[-1] == Bin(90, 10**6, 11)


@pytest.mark.parametrize("width", [80, 200])
def test_the_report_fits_and_uses_its_width(small: Path, width: int) -> None:
    lines = rendered(render_stats(stats(small)), width).splitlines()
    longest = max(terminal.cells(line.rstrip()) for line in lines)
    assert width - 8 <= longest <= width


def test_wide_consoles_show_histograms_side_by_side(small: Path) -> None:
    page = render_stats(stats(small))
    headings = ("tokens per piece", "messages per piece")
    assert any(all(heading in line for heading in headings) for line in rendered(page, 200).splitlines())
    assert not any(all(heading in line for heading in headings) for line in rendered(page, 80).splitlines())


def test_east_asian_names_stay_aligned(tmp_path: Path) -> None:
    rows = [kept(0, "a", model="模型一号"), kept(1, "b", model="gpt-4")]
    page = rendered(render_stats(stats(write_set(tmp_path / "set", rows))), 80)
    ends = [
        terminal.cells(line[: line.index(" %")]) for line in page.splitlines() if line.startswith(("模型一号", "gpt-4"))
    ]
    assert len(ends) == 2
    assert ends[0] == ends[1]


def test_names_in_the_data_cannot_control_the_terminal(tmp_path: Path) -> None:
    rows = [kept(0, "a", model="\x1b[2J[bold red]\u202egpt")]
    measured = stats(write_set(tmp_path / "set", rows))
    page = rendered(render_stats(measured), 80)
    assert "\x1b" not in page
    assert "␛[2J[bold red]\\u202egpt" in page
    assert "\u202e" not in terminal.to_json(measured)
    assert json.loads(terminal.to_json(measured))["models"][0]["name"] == "\x1b[2J[bold red]\u202egpt"


def test_the_report_is_the_same_in_ascii(small: Path) -> None:
    raw = io.BytesIO()
    console = terminal.console(file=io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace"), width=80)
    console.print(render_stats(stats(small)))
    console.file.flush()
    assert b"####" in raw.getvalue()


def test_colours_can_be_turned_off(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def codes() -> set[str]:
        file = io.StringIO()
        Console(file=file, width=80, force_terminal=True).print(render_stats(stats(small)))
        return set(re.findall(r"\x1b\[([0-9;]*)m", file.getvalue()))

    assert any("3" in code.split(";")[-1][:1] for code in codes())
    monkeypatch.setenv("NO_COLOR", "1")
    assert codes() <= {"0", "1", "2"}, "bold and dim are no colours"


def remove(*names: str) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return harm


def truncate(folder: Path) -> None:
    file = folder / curated_set.CONVERSATIONS
    os.truncate(file, file.stat().st_size // 2)


def scribble(folder: Path) -> None:
    """Overwrite the pages, leaving the footer intact."""
    with (folder / curated_set.CONVERSATIONS).open("r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 2000)


def drop_column(folder: Path) -> None:
    file = folder / curated_set.CONVERSATIONS
    pl.read_parquet(file).drop("answer_tokens").write_parquet(file)


def drop_key(folder: Path) -> None:
    write_manifest(folder, {"version": "0.0.1"})


def show_all(folder: Path) -> object:
    return list(show(set_path=folder))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "make one: curate clean"),
    "no manifest": (remove(curated_set.MANIFEST), "not a curated set"),
    "manifest of something else": (lambda f: (f / curated_set.MANIFEST).write_text("{}"), "not a curated set"),
    "manifest without counts": (drop_key, "damaged or of another version"),
    "another format": (lambda f: (f / curated_set.MANIFEST).write_text('{"curate_set": 99}'), "run curate clean again"),
    "half deleted": (remove(curated_set.CONVERSATIONS), "conversations.parquet is missing"),
    "rejects deleted": (remove(curated_set.REJECTED), "rejected.parquet is missing"),
    "only rejects left": (remove(curated_set.MANIFEST, curated_set.CONVERSATIONS), "not a curated set"),
    "truncated": (truncate, "is damaged"),
    "corrupt": (scribble, "is damaged"),
    "an older version's columns": (drop_column, "lacks a column"),
}


@pytest.mark.parametrize(("harm", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_an_unreadable_set_gets_one_line_with_a_suggestion(
    harm: Callable[[Path], object], message: str, small: Path
) -> None:
    intact = write_set(small.with_name("other"))
    harm(small)
    for look in (stats, show_all, lambda folder: compare(intact, folder), lambda folder: compare(folder, intact)):
        if look is show_all and message == "lacks a column":
            continue  # it does not read that column
        with pytest.raises(SetError) as caught:
            look(small)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


DUMP = [
    {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello there"}]},
    {"id": "b", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello there"}]},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "안녕하세요, 잘 지내세요?"}]},
    {"instruction": "Say hi", "output": "hi"},
    {"id": "c", "conversations": []},
    7,
]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dump") / "dump.jsonl"
    file.write_text("\n".join(map(json.dumps, DUMP)))
    return file


def test_a_dump_of_any_format_is_measured_without_repairs(dump: Path) -> None:
    statistics = stats(dump)
    assert (statistics.header.kind, statistics.header.recipe, statistics.header.read, statistics.header.kept) == (
        "dump",
        None,
        6,
        4,
    )
    assert statistics.flow.steps == (Step("no_messages", 1, 1), Step("not_a_record", 1, 1))
    assert statistics.roles == (Count("user", 4), Count("assistant", 3), Count("system", 1))
    assert statistics.languages[-1].name == "ko" or "ko" in [share.name for share in statistics.languages]
    assert 0 < statistics.header.answer_tokens < statistics.header.tokens
    same = statistics.duplicates
    assert (same.rejected, same.most_copied, same.copies, same.shared, same.largest) == (1, "a", 1, 1, 2)
    assert "none (not cleaned)" in rendered(render_stats(statistics), 80)


def test_tokens_of_a_dump_equal_those_of_clean(tmp_path: Path) -> None:
    from curate import clean

    clean("examples/sharegpt_dump.json", tmp_path / "set")
    once, again = stats(tmp_path / "set"), stats(tmp_path / "set" / curated_set.CONVERSATIONS)
    assert (again.header.kind, again.header.tokens) == ("dump", once.header.tokens)
    assert again.header.answer_tokens == once.header.answer_tokens
    assert again.roles == once.roles
    assert again.languages == once.languages


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.json", "[]", "no record in"),
        ("x.pdf", "%PDF-1.4", "is a PDF document"),
    ],
)
def test_a_file_that_is_not_a_dump_gets_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CurateError, match=message):
        stats(tmp_path / name)


def test_a_folder_of_other_files_is_neither_set_nor_dump(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="has no dump"):
        stats(tmp_path)


def test_duplicates_name_the_largest_cluster_and_the_most_copied(tmp_path: Path) -> None:
    rows = [kept(0, "a", cluster="x"), kept(1, "b", cluster="x"), kept(2, "c", cluster="y")]
    losses = [lost(3, "exact_duplicates", twin="b"), lost(4, "exact_duplicates", twin="b"), lost(5, "unreadable")]
    duplicates = stats(write_set(tmp_path / "set", rows, losses)).duplicates
    assert duplicates == Duplicates(2, 1, 2, 2, "a", 2, "b", 2)


def test_windows_hold_pieces_and_whole_conversations(tmp_path: Path) -> None:
    rows = [kept(0, "a_0", tokens=2000), kept(0, "a_1", piece=1, tokens=2000), kept(1, "b", tokens=100)]
    windows = stats(write_set(tmp_path / "set", rows)).windows
    assert windows == (WindowFit(2048, 3, 1), WindowFit(4096, 3, 2), WindowFit(8192, 3, 2))


def test_training_counts_the_train_split_alone(small: Path) -> None:
    training = stats(small).training
    assert (training.pieces, training.tokens, training.total_tokens) == (3, 880, 2640)
    assert training.trained_share == round(training.answer_tokens / 880, 4)
    assert training.steps == 1


def test_roles_are_counted_for_a_manifest_of_an_earlier_version(small: Path) -> None:
    assert stats(small).roles == (Count("assistant", 4), Count("user", 4))


@pytest.mark.parametrize("kind", ["set", "dump"])
def test_json_matches_its_schema(kind: str, small: Path, dump: Path) -> None:
    import jsonschema

    schema = json.loads((ROOT / "schemas/stats.schema.json").read_text())
    values = json.loads(terminal.to_json(stats(small if kind == "set" else dump)))
    jsonschema.Draft202012Validator(schema).validate(values)
    values["flow"]["extra"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)


PARTS = ("flow", "histograms", "percentiles", "languages", "models", "roles", "splits", "edits", "windows")


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_polars_frames_for_plotting(part: str, small: Path) -> None:
    assert stats(small).frame(part).height


def test_an_unknown_part_gets_the_nearest_name_suggested(small: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'histograms'"):
        stats(small).frame("histogram")


def every_line_fits(statistics: Stats, width: int) -> bool:
    return all(
        terminal.cells(line.rstrip()) <= width for line in rendered(render_stats(statistics), width).splitlines()
    )


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_report_of_a_dump_fits_its_width(width: int, dump: Path) -> None:
    assert every_line_fits(stats(dump), width)


def test_the_summary_shows_the_run_from_read_to_kept() -> None:
    text = rendered(summary.render_summary(decode(MANIFEST), Path("curated")), 80)
    for expected in ("read", "exact_duplicates", "kept", "50.0 %", "html_to_markdown 2", "1.5 s, 1.3 MB/s, 2 workers"):
        assert expected in text
    assert "1 exchange removed from kept records: overlong 1" in text


SAFE = {
    "escape": ("\x1b[31mred", "␛[31mred"),
    "a C1 control": ("\x9b31m", "\\u009b31m"),
    "delete and bell": ("\x7f\x07", "␡␇"),
    "an override of direction": ("a\u202eb\u2066", "a\\u202eb\\u2066"),
    "a lone surrogate": ("\ud800", "\\ud800"),
    "lines and tabs stay": ("a\r\nb\tc\n", "a\nb\tc\n"),
    "a lone carriage return would overwrite": ("good\rbad", "good␍bad"),
    "other scripts stay": ("한국어 日本語 עברית 👩‍👩‍👧", "한국어 日本語 עברית 👩‍👩‍👧"),
}


@pytest.mark.parametrize(("text", "shown"), SAFE.values(), ids=SAFE.keys())
def test_text_cannot_control_the_terminal(text: str, shown: str) -> None:
    assert terminal.safe(text) == shown


@given(st.text(), st.integers(1, 40))
def test_one_line_gives_one_safe_line_of_its_width(text: str, width: int) -> None:
    line = terminal.one_line(text, width)
    assert terminal.cells(line) <= width
    assert len(line.splitlines()) <= 1
    line.encode()


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "set"
    clean(ROOT / "examples/sharegpt_dump.json", folder, limit=20, workers=1)
    return folder


def run_without_polars(folder: Path, *options: str) -> str:
    """Run `curate stats` in a new process, which ends with an error if it has imported anything slow."""
    code = (
        "import sys\nfrom curate.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "loaded = {'polars', 'numpy', 'msgspec', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    command = [sys.executable, "-c", code, "stats", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured_again(folder: Path) -> Stats:
    return measure_again(curated_set.open_set(folder))


def test_a_set_is_shown_without_polars_as_it_is_measured(cleaned: Path) -> None:
    assert run_without_polars(cleaned, "--json") == terminal.to_json(measured_again(cleaned)) + "\n"
    shown = "".join(f"{line.rstrip()}\n" for line in rendered(render_stats(measured_again(cleaned)), 80).splitlines())
    assert run_without_polars(cleaned) == shown


def test_a_copied_set_is_known_by_its_bytes(cleaned: Path, tmp_path: Path) -> None:
    shutil.copytree(cleaned, tmp_path / "set", copy_function=shutil.copyfile)
    manifest = curated_set.open_set(tmp_path / "set").manifest
    assert read_recorded(tmp_path / "set", manifest) == measured_again(tmp_path / "set")


def change_table(folder: Path) -> None:
    file = folder / curated_set.CONVERSATIONS
    pl.read_parquet(file).with_columns(tokens=pl.col("tokens") + 1).write_parquet(file)


def change_bytes(folder: Path) -> None:
    """Change the table without a change of its size."""
    file = folder / curated_set.CONVERSATIONS
    content = bytearray(file.read_bytes())
    content[4] ^= 1
    file.write_bytes(content)


def change_measures(folder: Path) -> None:
    values = json.loads((folder / curated_set.MANIFEST).read_text())
    values["measures"]["values"]["histograms"][0]["count"] = "many"
    (folder / curated_set.MANIFEST).write_text(json.dumps(values))


def remove_rejected(folder: Path) -> None:
    (folder / curated_set.REJECTED).unlink()


@pytest.mark.parametrize("change", [change_table, change_bytes, change_measures, remove_rejected])
def test_what_was_recorded_is_not_shown_of_a_set_that_was_changed(
    cleaned: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(cleaned, tmp_path / "set")
    manifest = manifests.read(tmp_path / "set")[1]
    assert read_recorded(tmp_path / "set", manifest)
    change(tmp_path / "set")
    manifest = decode(json.loads((tmp_path / "set" / curated_set.MANIFEST).read_text()))
    assert read_recorded(tmp_path / "set", manifest) is None
    if change is change_table:
        assert stats(tmp_path / "set").header.tokens == stats(cleaned).header.tokens + manifest.counts.pieces


def test_refilter_measures_again(cleaned: Path, tmp_path: Path) -> None:
    output = refilter(cleaned, tmp_path / "set", where="tokens > 100").output
    assert stats(output) == measured_again(output) != stats(cleaned)
