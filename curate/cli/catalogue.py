"""`curate filters`, `curate recipes`, `curate presets` and `curate formats`: lists generated from the code."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("name", required=False)
@click.option("--filters", "files", multiple=True, metavar="FILE", help="Also list the rules of this Python file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def filters(name: str | None, files: tuple[str, ...], as_json: bool) -> None:
    """List filters, repairs and signals, or describe one in full.

    \b
    Example:
      curate filters exact_duplicates
    """
    from curate.filters import registry
    from curate.pipeline import recipe
    from curate.report.terminal.lists import render_filter, render_filters

    for file in files:
        registry.load(file)
    vicuna = recipe.load("vicuna", check_filters=False)
    on = {*vicuna.filters, *vicuna.signals, *(rule.name for rule in registry.rules("signal").values() if rule.always)}
    rules = [registry.get(name)] if name else list(registry.rules().values())
    if as_json:
        entries = [
            {
                "name": r.name,
                "kind": r.kind,
                "default": r.name in on,
                "summary": r.summary,
                "settings": dict(r.settings),
                "columns": list(r.columns),
                "source": r.source,
            }
            for r in rules
        ]
        click.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    from curate.display.text import show

    show(render_filter(rules[0], rules[0].name in on) if name else render_filters(rules, on))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a recipe with all its settings.")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes for clean, or print one.

    The filter files that a recipe names are Python code, which clean and
    refilter run; here they are only listed.

    \b
    Example:
      curate recipes vicuna > mine.toml
    """
    from curate.pipeline import recipe

    known = recipe.RECIPES.summaries()
    if name and as_json:
        click.echo(json.dumps(recipe.load(name, run_files=False).to_dict(), indent=1))
        return
    if name:
        built_in = name in known
        click.echo(recipe.RECIPES.source(name) if built_in else recipe.load(name, run_files=False).to_toml(), nl=False)
        return
    if as_json:
        click.echo(json.dumps(known, indent=1))
        return
    from curate.display.text import show
    from curate.report.terminal.lists import render_names

    show(render_names(known, ("recipe", "description")))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a preset with all its settings.")
def presets(name: str | None, as_json: bool) -> None:
    """List the presets for finetune, or print one.

    \b
    Example:
      curate presets vicuna-7b > mine.toml
    """
    from curate.train import config

    known = config.PRESETS.summaries()
    if name and as_json:
        click.echo(json.dumps(config.load(name).to_dict(), indent=1))
    elif name:
        click.echo(config.PRESETS.source(name) if name in known else config.load(name).to_toml(), nl=False)
    elif as_json:
        click.echo(json.dumps(known, indent=1))
    else:
        from curate.display.text import show
        from curate.report.terminal.lists import render_names

        show(render_names(known, ("preset", "description")))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def formats(as_json: bool) -> None:
    """List the formats that can be read and written.

    \b
    Example:
      curate formats
    """
    from curate.schemas.formats import FORMATS

    known = list(FORMATS.values())
    if as_json:
        plain = [{"name": f.name, "reads": f.reads, "writes": f.writes, "summary": f.summary} for f in known]
        click.echo(json.dumps(plain, indent=1, ensure_ascii=False))
        return
    from curate.display.text import show
    from curate.report.terminal.lists import render_formats

    show(render_formats(known))
