"""A run's page: `report.html`, one file without scripts, and `loss.png`, both made from what the run wrote down.

All text of data, models and settings is escaped, and the page forbids itself to load or run anything. What a
reader could not see, or a terminal would obey, is made visible (`terminal.safe`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from curate.display.text import safe
from curate.train.report import curves
from curate.train.report.curves import Line, Point
from curate.train.run import records
from curate.train.run.records import Records, Row

REPORT, PICTURE = "report.html", "loss.png"
SHOWN = 40  # rows of a table that the data makes long; the files beside the page have them all
LONG = 4_000  # characters of one message
SLICES = (
    ("by_exchanges", "exchanges"),
    ("by_depth", "answer"),
    ("by_language", "language"),
    ("by_length", "length, tokens"),
)


def write(run: Path) -> list[Path]:
    """Write the page and the picture of a run as far as it has come; return the files.

    Without matplotlib there is the page alone, which has the curve too.
    """
    found = records.read(run)
    page = run / REPORT
    aside = run / f".{REPORT}.partial"
    aside.write_text(html(found), "utf-8", "backslashreplace")
    aside.replace(page)
    drawn = picture(run / PICTURE, found)
    return [page, run / PICTURE] if drawn else [page]


def picture(path: Path, found: Records) -> bool:
    """Draw the curve of the loss into a PNG file; tell whether there is matplotlib to do it."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        curves.png(aside, loss_lines(found), f"{found.name}: loss")
    except ImportError:
        return False
    aside.replace(path)
    return True


def loss_lines(found: Records) -> list[Line]:
    """Return the curves of the loss: each step, their running mean, and the held-out loss."""
    steps = _points(found.metrics, "loss")
    lines = [Line("each step", "raw", steps), Line("running mean", "smooth", curves.smoothed(steps))]
    tuned = _evaluated(found, records.TUNED)
    base = _evaluated(found, records.BASE)
    if base and steps:
        base = [(min(steps[0][0], base[0][0]), base[0][1]), (max(steps[-1][0], base[-1][0]), base[0][1])]
    return [*lines, Line("held out", "tuned", tuned, dots=True), Line("base model, held out", "base", base)]


def _points(rows: Iterable[Row], key: str) -> list[Point]:
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


def _evaluated(found: Records, which: str) -> list[Point]:
    rows = [row for row in found.evals if row.get("which") == which and isinstance(row.get("overall"), dict)]
    return _points([{"step": row["step"], "loss": row["overall"].get("loss")} for row in rows], "loss")


# ---- the page


def html(found: Records) -> str:
    """Return the page of a run."""
    sections = [
        _section("Loss", curves.svg(loss_lines(found), "loss by step") + _legend()),
        _section("Held-out loss", _eval_tables(found)),
        _section("Answers", "".join(_pair(base, tuned) for base, tuned in found.answers())),
        _section("Course of the run", _course(found)),
        _section("Data", _facts(found.facts.get("data"))),
        _section("Left out of training", _left_out(found.left_out)),
        _section("What is trained on", _key() + "".join(map(_masked, found.masked)) if found.masked else ""),
        _section("Plan and measurement", _plan(found)),
        _section("Configuration", f"<pre>{_text(found.config)}</pre>" if found.config else ""),
    ]
    name = _text(found.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · curate finetune</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{name}</h1>{_summary(found)}{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _text(value: object) -> str:
    """Return any value as text that can neither run nor hide anything on a page."""
    if isinstance(value, str):
        shown = value
    elif isinstance(value, float):
        shown = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    elif isinstance(value, int) and not isinstance(value, bool):
        shown = f"{value:,}"
    else:
        shown = json.dumps(value, ensure_ascii=False, default=str)
    return escape(safe(shown))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table of cells that are safe already; the columns from `numbers` on, if any, stand to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        names = (' class="n"' if numbers and place >= numbers else "" for place in range(len(row)))
        return "".join(f"<{tag}{name}>{cell}</{tag}>" for name, cell in zip(names, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', heading)}</tr></thead>" if any(heading) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>' if body else ""


def _facts(facts: object) -> str:
    if not isinstance(facts, Mapping):
        return ""
    return _table(("", ""), [(_text(str(name).replace("_", " ")), _value(value)) for name, value in facts.items()])


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(str(key))} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return _text(value)


def _summary(found: Records) -> str:
    """Return the run in figures: what was trained how, and what came of it."""
    facts = found.facts
    said = [facts.get(key) for key in ("base", "method", "template")]
    words = " · ".join(_text(value) for value in said if value)
    tiles = []
    last = found.metrics[-1] if found.metrics else {}
    for name, value in (("steps", last.get("step")), ("training loss", last.get("loss"))):
        tiles.append((name, value))
    base, tuned = (_overall(found.evaluation(which)) for which in (records.BASE, records.TUNED))
    tiles += [("held-out loss, base", base.get("loss")), ("held-out loss, tuned", tuned.get("loss"))]
    shown = "".join(f"<div><b>{_text(value)}</b>{name}</div>" for name, value in tiles if value is not None)
    status = facts.get("status")
    note = f'<p class="note">{_text(status)}</p>' if status and status != "finished" else ""
    return f'<p class="note">{words}</p>{note}<div class="tiles">{shown}</div>'


def _overall(row: Row | None) -> Row:
    found = row.get("overall") if row else None
    return found if isinstance(found, dict) else {}


def _legend() -> str:
    names = (("raw", "each step"), ("smooth", "running mean"), ("tuned", "held out"), ("base", "base model, held out"))
    return '<p class="legend">' + "".join(f'<span class="{kind}">{name}</span>' for kind, name in names) + "</p>"


def _eval_tables(found: Records) -> str:
    base, tuned = found.evaluation(records.BASE), found.evaluation(records.TUNED)
    newest = tuned or base
    if newest is None:
        return ""
    rows = [_eval_row("all", _overall(base), _overall(newest), tuned is not None)]
    for key, title in SLICES:
        before = {one.get("name"): one for one in (base or {}).get(key) or []}
        for one in (newest.get(key) or [])[:SHOWN]:
            rows.append(
                _eval_row(f"{title}: {one.get('name')}", before.get(one.get("name"), {}), one, tuned is not None)
            )
    return _table(("", "conversations", "trained tokens", "base", "tuned", "change"), rows, numbers=1)


def _eval_row(name: str, base: Row, now: Row, is_tuned: bool) -> tuple[str, ...]:
    before, after = base.get("loss"), now.get("loss") if is_tuned else None
    change = after - before if isinstance(before, float) and isinstance(after, float) else None
    losses = [f"{value:.4f}" if isinstance(value, int | float) else "" for value in (before, after)]
    sign = "" if change is None else f"{change:+.4f}"
    return (_text(name), _text(now.get("conversations", "")), _text(now.get("tokens", "")), *losses, sign)


def _pair(base: Row | None, tuned: Row) -> str:
    """Return one prompt with the answers of both models side by side."""
    prompt = "".join(
        f'<p class="role">{_text(str(one.get("role")))}</p><div class="says">{_cut(str(one.get("content")))}</div>'
        for one in tuned.get("messages") or []
        if isinstance(one, dict)
    )
    name = f'<p class="note">{_text(str(tuned["name"]))}</p>' if tuned.get("name") else ""
    both = "".join(_answer(title, row) for title, row in (("base", base), ("tuned", tuned)) if row)
    if isinstance(tuned.get("reference"), str):
        both += _answer("in the data", {"answer": tuned["reference"], "stopped": True})
    return f'<div class="sample">{name}{prompt}<div class="pair">{both}</div></div>'


def _answer(title: str, row: Row) -> str:
    end = "" if row.get("stopped") else ' <span class="note">(did not stop)</span>'
    return f'<div><p class="role">{title}</p><div class="says">{_cut(str(row.get("answer", "")))}{end}</div></div>'


def _cut(text: str) -> str:
    more = f"\n… {len(text) - LONG:,} more characters" if len(text) > LONG else ""
    return _text(text[:LONG] + more)


def _course(found: Records) -> str:
    """Return the other curves: learning rate, tokens a second, memory."""
    kinds = (("lr", "learning rate"), ("tokens_per_s", "tokens per second"), ("mfu", "MFU"), ("gib", "GiB"))
    drawn = []
    for key, title in kinds:
        points = _points(found.metrics, key)
        if any(y for _, y in points):
            curve = curves.svg([Line(title, "smooth", points)], title, size=curves.SMALL)
            drawn.append(f"<figure>{curve}<figcaption>{title}</figcaption></figure>")
    return f'<div class="pair">{"".join(drawn)}</div>' if drawn else ""


def _left_out(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    shown = [
        (_text(str(row.get("name", row.get("id", "")))), _text(str(row.get("reason", "")))) for row in rows[:SHOWN]
    ]
    more = f'<p class="note">{len(rows):,} in all, every one in {records.LEFT_OUT}</p>' if len(rows) > SHOWN else ""
    return _table(("conversation", "reason"), shown) + more


def _key() -> str:
    return '<p class="legend"><mark>trained on</mark> <span class="note">read only</span></p>'


def _masked(row: Row) -> str:
    """Return one conversation, its trained tokens marked; `runs` are [text, trained] in order."""
    runs = [run for run in row.get("runs") or [] if isinstance(run, list) and len(run) == 2]
    body = "".join(f"<mark>{_text(str(text))}</mark>" if trained else _text(str(text)) for text, trained in runs)
    return f"<details><summary>{_text(str(row.get('name')))}</summary><pre>{body}</pre></details>"


def _plan(found: Records) -> str:
    """Return what the plan foresaw beside what was measured."""
    plan, last = found.plan, found.metrics[-1] if found.metrics else {}
    rows = []
    measured = {
        "gib": max((row["gib"] for row in found.metrics if isinstance(row.get("gib"), int | float)), default=None)
    }
    measured |= {"steps": last.get("step"), "seconds": found.facts.get("seconds")}
    for name, value in plan.items():
        shown = _value(value) if not isinstance(value, list) else "<br>".join(_value(one) for one in value)
        now = measured.get("gib" if name in ("total_gib", "peak_gib", "gib") else name)
        rows.append((_text(str(name).replace("_", " ")), shown, _text(now) if now is not None else ""))
    return _table(("", "planned", "measured"), rows)


STYLE = """
:root{--ink:#1c2430;--soft:#64707f;--line:#dfe4ea;--paper:#fff;--pane:#f6f8fa;--mark:#cdeccf;--raw:#9db4cc;
--smooth:#1f5fa8;--tuned:#c8541f;--base:#888;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#96a1b0;--line:#333c48;--paper:#14181e;--pane:#1c222a;
--mark:#245a33;--raw:#47617d;--smooth:#6fb1f2;--tuned:#f08a55;--base:#999}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 64px}h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:36px 0 10px;border-bottom:1px solid var(--line);padding-bottom:4px}
.note{color:var(--soft);margin:4px 0}.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:14px 0}
.tiles div{background:var(--pane);border-radius:8px;padding:8px 16px;color:var(--soft);font-size:13px}
.tiles b{display:block;font-size:20px;color:var(--ink);font-weight:600}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px}th{color:var(--soft);font-weight:500;text-align:left}
td,th{padding:4px 18px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
pre,.says{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--pane);border-radius:8px;padding:10px 12px}
pre{font:13px/1.5 ui-monospace,monospace;margin:6px 0}.role{color:var(--soft);font-size:13px;margin:8px 0 2px}
.sample{border-top:1px solid var(--line);padding:10px 0 14px}.sample:first-of-type{border-top:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:14px}.pair>*{min-width:0}
figure{margin:0}figcaption{color:var(--soft);font-size:13px;text-align:center}
mark{background:var(--mark);color:inherit;border-radius:2px}summary{cursor:pointer;padding:4px 0;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;max-width:960px}
svg text{fill:var(--soft);font-size:11px}svg .grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}polyline.raw{stroke:var(--raw);stroke-width:1}
polyline.smooth{stroke:var(--smooth)}polyline.tuned{stroke:var(--tuned)}
polyline.base{stroke:var(--base);stroke-dasharray:5 4}
circle.raw,circle.smooth{fill:var(--smooth)}circle.tuned{fill:var(--tuned)}circle.base{fill:var(--base)}
.legend{display:flex;flex-wrap:wrap;gap:16px;font-size:13px;color:var(--soft);margin:6px 0}
.legend span[class]:not(.note)::before{content:"";display:inline-block;width:16px;height:3px;margin:0 6px 3px 0}
.legend .raw::before{background:var(--raw)}.legend .smooth::before{background:var(--smooth)}
.legend .tuned::before{background:var(--tuned)}
.legend .base::before{background:repeating-linear-gradient(90deg,var(--base) 0 5px,transparent 5px 8px)}
"""
