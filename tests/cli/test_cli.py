"""The command line: output, exit codes and error messages."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import curate.cli
from curate._version import __version__
from curate.cli import COMMANDS, cli
from curate.cli.progress import clean as clean_progress
from curate.display.figures import duration
from curate.errors import SetError
from tests.support.small_set import write_set

DUMP = [
    {
        "id": f"chat{index}",
        "conversations": [
            {"from": "human", "value": f"How do I sort a list in Python, case {index}?"},
            {
                "from": "gpt",
                "value": f'<div class="markdown prose"><p>Call <code>sorted</code> on it, {index} times.</p></div>',
            },
        ],
    }
    for index in range(5)
]


def curate_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "curate", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="curate")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def test_a_result_is_named_in_the_same_ways_by_every_command() -> None:
    spellings = {
        name: set(option.opts)
        for name in COMMANDS
        if isinstance(command := cli.get_command(click.Context(cli), name), click.Command)
        for option in command.params
        if isinstance(option, click.Option) and {"--out", "--output", "-o"} & set(option.opts)
    }
    assert {"clean", "finetune", "refilter"} <= spellings.keys()
    assert [name for name, names in spellings.items() if names != {"-o", "--output", "--out"}] == []


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").output.split() == ["curate,", "version", __version__]


def test_help_lists_every_command_with_its_purpose_uncut() -> None:
    lines = invoke("--help").output.splitlines()
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") and line.endswith(".") for line in lines), name
    assert "..." not in "\n".join(lines[lines.index("Data:") :])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_ends_with_an_example_that_parses(name: str) -> None:
    command = getattr(importlib.import_module(f"curate.cli.{COMMANDS[name]}"), name)
    assert isinstance(command, click.Command)
    *_, heading, example = (command.help or "").strip().splitlines()
    assert heading.strip() == "Example:"
    arguments = example.split(">")[0].split()
    assert arguments[:2] == ["curate", name]
    command.make_context(name, arguments[2:])


def test_help_and_the_lists_load_no_more_than_they_need() -> None:
    code = "import sys; from curate.cli import main; sys.argv[1:] = {args}\ntry: main()\nexcept SystemExit: pass\n"
    code += "heavy = {{'polars', 'rich', 'numpy', 'transformers', 'tokenizers'}}\n"
    code += "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    for arguments, loaded in (["--help"], ""), (["clean", "--help"], ""), (["recipes", "vicuna"], ""):
        done = subprocess.run(
            [sys.executable, "-c", code.format(args=arguments)], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == loaded, arguments


USAGE = {
    "unknown command": (["stat"], "no command 'stat'; did you mean 'stats'?"),
    "unknown flag": (["clean", "x.json", "--max-token", "5"], "--max-tokens"),
    "no input": (["clean"], "INPUT"),
    "no number": (["clean", "x.json", "--max-tokens", "2k"], "2k"),
    "too small": (["clean", "x.json", "--workers", "0"], "x>=1"),
    "too large": (["clean", "x.json", "--eval", "1"], "0<=x<1"),
}


@pytest.mark.parametrize(("arguments", "hint"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_exits_2_and_suggests_a_fix(arguments: list[str], hint: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert hint in result.stderr


def test_clean_reads_text_in_a_given_encoding_and_names_the_likely_one_without(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "慢性鼻炎的治疗方法有哪些？"}, {"from": "gpt", "value": "鼻腔冲洗；局部用药。"}]
    text = json.dumps({"id": "a", "conversations": turns}, ensure_ascii=False)
    (tmp_path / "dump.jsonl").write_bytes(text.encode("gbk"))
    arguments = ["clean", str(tmp_path / "dump.jsonl"), "-o", str(tmp_path / "set")]
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 1
    assert "add --encoding gb18030" in str(refused.exception) + refused.output
    unknown = CliRunner().invoke(cli, [*arguments, "--encoding", "gbkk"])
    assert "did you mean 'gbk'?" in str(unknown.exception) + unknown.output
    read = CliRunner().invoke(cli, [*arguments, "--encoding", "gbk", "--json"])
    assert (read.exit_code, json.loads(read.stdout)["counts"]["kept"]) == (0, 1)


def test_stats_prints_the_page_on_stdout(small: Path) -> None:
    result = invoke("stats", str(small))
    assert result.exit_code == 0
    assert "exact_duplicates" in result.stdout
    assert result.stderr == ""
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_stats_as_json_has_stable_keys(small: Path) -> None:
    values = json.loads(invoke("stats", str(small), "--json").stdout)
    parts = "header flow histograms languages models roles turn_keys splits edits duplicates windows training "
    parts += "contamination"
    assert list(values) == parts.split()
    assert values["flow"]["steps"][0] == {"rule": "exact_duplicates", "first": 1, "alone": 2}


def test_explain_prints_the_history_of_a_record(small: Path) -> None:
    result = invoke("explain", "abc", "--set", str(small))
    assert result.exit_code == 0
    assert "html_to_markdown in message 1, 2 times" in result.stdout
    assert json.loads(invoke("explain", "abc", "--set", str(small), "--json").stdout)["matches"] == 1


@pytest.mark.parametrize("arguments", [["stats", "nowhere"], ["explain", "x", "--set", "nowhere"]])
def test_a_missing_set_is_one_line_and_exit_1(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: no curated set at 'nowhere'; make one: curate clean DUMP -o nowhere\n"


def test_filters_lists_every_registered_filter() -> None:
    from curate.filters import registry

    entries = json.loads(invoke("filters", "--json").stdout)
    assert [entry["name"] for entry in entries] == list(registry.rules())
    assert {entry["name"] for entry in entries if entry["default"]} >= {"min_messages", "exact_duplicates"}
    assert {(entry["name"], entry["source"]) for entry in entries} >= {("refusals", "filters/refusals.py")}
    table = invoke("filters").stdout
    assert all(entry["name"] in table and entry["source"] in table for entry in entries)


def test_one_filter_shows_its_documentation() -> None:
    result = invoke("filters", "vendor_mention")
    assert "any_turn = false" in result.stdout
    wrong = invoke("filters", "vendor_mentions")
    assert (wrong.exit_code, wrong.stderr) == (
        1,
        "error: unknown filter 'vendor_mentions'; did you mean 'vendor_mention'?\n",
    )


def test_a_real_process_prints_no_traceback_and_exits_1(tmp_path: Path) -> None:
    done = curate_in(tmp_path, "stats", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no curated set at 'nowhere'")


def test_user_filters_are_listed_too(tmp_path: Path) -> None:
    file = tmp_path / "mine_listed.py"
    file.write_text(
        "import polars as pl\nfrom curate.filters import rule\n\n@rule\ndef shouts(most: int = 3) -> pl.Expr:\n"
        "    '''Drop what shouts.'''\n    return pl.col('characters') > most\n"
    )
    result = curate_in(tmp_path, "filters", "--filters", "mine_listed.py")
    assert "shouts" in result.stdout
    assert "Drop what shouts." in result.stdout
    assert "mine_listed.py" in result.stdout.replace("\n", "")


def test_recipes_are_listed_and_printed_as_they_are_written(tmp_path: Path) -> None:
    assert list(json.loads(invoke("recipes", "--json").stdout)) == ["vicuna", "fastchat", "strict"]
    printed = invoke("recipes", "strict").stdout
    (tmp_path / "mine.toml").write_text(printed)
    assert printed.startswith("#")
    assert json.loads(invoke("recipes", "strict", "--json").stdout)["filters"]["identity"]
    assert invoke("recipes", "stricd").stderr == (
        "error: no recipe 'stricd'; did you mean 'strict'? (or give the path of a .toml file)\n"
    )


def test_formats_are_listed_from_the_code() -> None:
    from curate.schemas.formats import FORMATS

    entries = json.loads(invoke("formats", "--json").stdout)
    assert [entry["name"] for entry in entries] == list(FORMATS)
    assert all(name in invoke("formats").stdout for name in FORMATS)


def test_convert_writes_the_file_and_reports_on_stderr(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "train.json"
    result = invoke("convert", str(small), str(target), "--to", "vicuna", "--split", "train")
    assert (result.exit_code, result.stdout) == (0, "")
    counts, not_held = result.stderr.splitlines()
    assert counts.endswith("train.json: 3 of 4 pieces, 1 not selected")
    assert not_held == "the format has no place for: model of 1 (conversations)"
    assert [row["id"] for row in json.loads(target.read_text())] == ["abc_0", "deadbeef", "twice"]


def test_convert_as_json_counts_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "dump.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    result = invoke("convert", str(tmp_path / "dump.jsonl"), str(tmp_path / "out.json"), "--to", "vicuna", "--json")
    assert json.loads(result.stdout)["left_out"] == {"not_representable": 1}
    assert "out.json: 0 of 1 records\nwarning: 1 left out (not_representable 1)" in result.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes `curate formats` raise an error."""

    def arrange(error: BaseException) -> None:
        def command() -> None:
            raise error

        monkeypatch.setattr("curate.cli.catalogue.formats", click.command("formats")(command))

    return arrange


ENDS = {
    "what a user can mend": (SetError("no set\x1b[31m"), 1, "error: no set␛[31m\n"),
    "the disk": (OSError(28, "No space left on device", "curated"), 1, "error: No space left on device: 'curated'\n"),
    "a defect": (ValueError("x"), 1, "error: this is a bug in curate: ValueError: x; please report it"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "stopped; nothing was changed\n"),
    "a reader that went away": (BrokenPipeError(32, "Broken pipe"), 1, ""),
}


@pytest.mark.parametrize(("error", "code", "message"), ENDS.values(), ids=ENDS.keys())
def test_every_error_has_its_exit_code_and_one_line(
    error: BaseException, code: int, message: str, failing: Any
) -> None:
    failing(error)
    result = invoke("formats")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == bool(message)


def test_a_bug_shows_its_traceback_only_on_request(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ValueError("x"))
    monkeypatch.setenv("CURATE_DEBUG", "1")
    assert isinstance(invoke("formats").exception, ValueError)


def test_a_pipe_that_closes_early_is_not_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [f"{sys.executable} -m curate filters | head -1"],
        shell=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""


def state(**values: float) -> Any:
    unpacked = {"bytes_unpacked": values.get("bytes_read", 0)}
    known = {"bytes_read": 0, "bytes_total": None, "records": 0, "kept": 0, "rejected": 0, "seconds": 0.0}
    return SimpleNamespace(**{**known, **unpacked, "stage": "reading", **values})


LINES = {
    "of a known size": (
        state(bytes_read=12_000_000, bytes_total=48_000_000, records=3000, rejected=20, seconds=2.0),
        "reading: 12.0 MB of 48.0 · 25 % · 6.0 MB/s · 3,000 records · 6 s left · 20 rejected",
    ),
    "of an unknown size": (
        state(bytes_read=500_000, seconds=1.0, records=7),
        "reading: 0.5 MB · 0.5 MB/s · 7 records · 0 rejected",
    ),
    "of a compressed file": (
        state(bytes_read=2_000_000, bytes_total=8_000_000, bytes_unpacked=10_000_000, seconds=2.0),
        "reading: 2.0 MB of 8.0 · 25 % · 5.0 MB/s · 0 records · 6 s left · 0 rejected",
    ),
    "at the start": (state(bytes_total=10), "reading: 0.0 MB of 0.0 · 0 % · 0.0 MB/s · 0 records · 0 rejected"),
}


@pytest.mark.parametrize(("now", "line"), LINES.values(), ids=LINES.keys())
def test_progress_is_one_line(now: Any, line: str) -> None:
    assert clean_progress.full_line(now) == line


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8 s"), (187, "3:07 min"), (7500, "2:05 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_a_line_is_printed_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with clean_progress.show_progress(quiet=False) as update:
        assert update is not None
        for seconds in (1, 3, 4, 5, 6.5):
            update(state(bytes_read=1000, seconds=float(seconds)))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 2


def test_quiet_shows_no_progress() -> None:
    with clean_progress.show_progress(quiet=True) as update:
        assert update is None


def dump_in(folder: Path) -> Path:
    file = folder / "dump.json"
    file.write_text(json.dumps(DUMP))
    return file


def test_clean_then_stats_then_explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_in(tmp_path)
    done = curate_in(tmp_path, "clean", "dump.json", "--workers", "1")
    assert done.returncode == 0
    assert "warning" not in done.stderr
    assert "kept" in done.stdout
    assert "html_to_markdown" in done.stdout
    assert "MB/s" in done.stdout
    monkeypatch.chdir(tmp_path)
    assert "100.0 %" in invoke("stats").stdout
    assert "+ Call `sorted` on it" in invoke("explain", "chat3").stdout


def test_clean_as_json_prints_the_manifest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = invoke("clean", "dump.json", "--json", "--limit", "2", "--workers", "1", "-o", "two")
    manifest = json.loads(done.stdout)
    assert manifest["counts"]["read"] == 2
    assert manifest["recipe"]["input"]["limit"] == 2


def test_damage_is_a_warning_and_an_error_only_with_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = dump_in(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.chdir(tmp_path)
    done = invoke("clean", "dump.json", "--workers", "1")
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "dump.json" in line]
    strict = invoke("clean", "dump.json", "--workers", "1", "--strict", "--quiet")
    assert (strict.exit_code, strict.stdout) == (1, "")


WRONG_RUNS = {
    "missing input": (["nowhere.json"], "nowhere.json"),
    "unknown recipe": (["dump.json", "--recipe", "vicunna"], "did you mean 'vicuna'"),
    "unknown language": (["dump.json", "--language", "englisch"], "englisch"),
    "unknown template": (["dump.json", "--template", "lama3"], "did you mean 'llama3'"),
    "a folder of other things": (["dump.json", "-o", "."], "is not a curated set"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_RUNS.values(), ids=WRONG_RUNS.keys())
def test_a_run_that_cannot_start_is_one_line_and_exit_1(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = invoke("clean", *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["dump.json"]


def test_ctrl_c_leaves_the_earlier_set_unchanged_and_prints_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curate", "clean", "-", "--workers", "1"]
    root = str(Path(__file__).parents[2])
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdin is not None
    run.stdin.write(json.dumps(DUMP)[:-1])
    run.stdin.flush()
    for _ in range(200):  # until the temporary folder appears
        if any(tmp_path.iterdir()):
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, messages = run.communicate(timeout=60)
    assert (run.returncode, messages.strip()) == (130, "stopped; nothing was changed")
    assert not (tmp_path / "curated").exists()


def test_only_known_commands_are_accepted() -> None:
    folder = Path(curate.cli.__file__).parent
    modules = {".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")}
    helpers = {
        "pager",
        "rendering_options",
        "options",
        "progress.bars",
        "progress.clean",
        "progress.finetune",
        "progress.generate",
        "progress.stages",
    }
    assert set(COMMANDS.values()) == {name for name in modules if not name.endswith("__init__")} - helpers


@pytest.mark.parametrize(
    "arguments",
    [
        *(["stats", "{set}"], ["show", "--set", "{set}"], ["convert", "{set}", "x.jsonl", "--to", "jsonl"]),
        *(["convert", "{good}", "{set}.parquet", "--to", "hf"], ["show", "--set", "{good}", "--search", "a\udcffb"]),
        *(["show", "--set", "{good}", "--rejected", "--search", "a\udcffb"], ["show", "--set", "{good}", "a\udcffb"]),
        *(["show", "--set", "{good}", "--where", "id = 'a\udcffb'"], ["clean", "{dump}", "-o", "{set}-new"]),
        *(
            ["clean", "{dump}", "--recipe", "{set}"],
            ["clean", "{dump}", "--against", "{set}"],
            ["clean", "{set}.parquet"],
        ),
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "backslashreplace").decode(),
)
def test_arguments_with_bytes_that_are_not_utf_8_get_one_clear_line(tmp_path: Path, arguments: list[str]) -> None:
    bad = write_set(tmp_path / "bad").rename(tmp_path / "a\udcffb")
    (tmp_path / "dump.json").write_text(json.dumps(DUMP))
    shutil.copy(bad / "conversations.parquet", tmp_path / "a\udcffb.parquet")
    names = {"set": str(bad), "good": str(write_set(tmp_path / "set")), "dump": str(tmp_path / "dump.json")}
    result = invoke(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "bug in curate" not in result.stderr


def test_a_dump_and_a_file_of_texts_can_have_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = str(tmp_path / "a\udcffb.jsonl")
    assert invoke("convert", str(write_set(tmp_path / "set")), name, "--to", "jsonl").exit_code == 0
    assert invoke("convert", name, str(tmp_path / "b.json"), "--to", "openai").exit_code == 0
