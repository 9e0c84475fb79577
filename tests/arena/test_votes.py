"""The file of votes: torn lines, one writer at a time, what is read of it, and what `clean` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from curate.arena.votes import VoteCounts, VoteFile, read_battles, read_votes
from curate.cli import cli
from curate.errors import InputError, UnsafePathError

ANSWERED = {"conversation_a": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}


def vote(winner: str, a: str = "one", b: str = "two") -> dict[str, object]:
    return {"model_a": a, "model_b": b, "winner": winner, **ANSWERED}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["arena", "--ratings", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def write(path: Path, *votes: object) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in votes))
    return path


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_line_that_a_killed_run_left_unfinished_is_cut_and_told(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "votes.jsonl", vote("tie"), vote("model_a"))
    whole = path.read_bytes().splitlines(keepends=True)
    torn = whole[1][:cut]
    path.write_bytes(whole[0] + torn)
    with VoteFile(path) as file:
        assert file.repaired == len(torn)
        file.append(vote("model_b"))
    assert [json.loads(line)["winner"] for line in path.read_text().splitlines()] == ["tie", "model_b"]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", vote("tie"))
    path.write_bytes(path.read_bytes()[:-1])
    with VoteFile(path) as file:
        assert file.repaired == 0
        file.append(vote("model_b"))
    assert len(path.read_text().splitlines()) == 2


def test_one_page_at_a_time_writes_votes(tmp_path: Path) -> None:
    with VoteFile(tmp_path / "v.jsonl"), pytest.raises(InputError, match="another page writes votes"):
        VoteFile(tmp_path / "v.jsonl").__enter__()


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        VoteFile(tmp_path / "v.jsonl").__enter__()
    assert not (tmp_path / "elsewhere").exists()


def test_every_line_is_rated_or_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.jsonl",
        vote("model_a"), vote("Tie"), vote("tie (bothbad)"), vote("skipped"), vote("left?"), vote("model_a", "x", "x"),
        {"winner": "tie"}, [1], vote("model_b", 3),  # type: ignore[arg-type]
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + b'{"model_a": "\xff"}\n\n{"winner')
    counts = VoteCounts()
    assert [each.score for each in read_votes(path, counts)] == [1.0, 0.5, 0.5]
    assert (counts.rated, counts.ties, counts.skipped, len(counts.unusable)) == (3, 2, 1, 7)
    assert counts.unusable[0].startswith("v.jsonl:5: the winner is 'left?'; known: model_a")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the votes"), ("", "no votes in"), ('{"winner": "skipped"}\n', "1 skipped")],
)
def test_no_votes_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "v.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_battles([tmp_path / "v.jsonl"])


def test_the_command_prints_ratings_with_intervals(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", *[vote("model_a")] * 6, *[vote("model_b")] * 3, vote("tie"), vote("skipped"))
    shown = run("--votes", path)
    assert "95 % interval" in shown and "one" in shown and "65.0 %" in shown and "skipped" in shown
    plain = json.loads(run("--votes", path, "--json"))
    assert [each["model"] for each in plain["models"]] == ["one", "two"]
    assert plain["models"][0]["low"] < plain["models"][0]["rating"] < plain["models"][0]["high"]
    assert plain["votes"] == {"rated": 10, "ties": 1, "skipped": 1, "unusable": []}
    path = write(tmp_path / "w.jsonl", vote("model_a"))
    assert "∞" in run("--votes", path)
    assert json.loads(run("--votes", path, "--json"))["models"][0]["high"] is None
