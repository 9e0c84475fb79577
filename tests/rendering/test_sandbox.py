"""A chat template from elsewhere ends, and makes no text that fills the memory; ordinary templates are not limited."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2")

from jinja2.exceptions import SecurityError

from curate.errors import RecipeError
from curate.rendering.chat_template.environment import compile_template

LISTS = "{% set x = range(99999)|list %}"
BOMBS = {
    "loops": LISTS + "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "times": "{{ 'a' * 100000000000 }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "plus": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "method": "{{ 'a'.ljust(100000000000) }}",
    "filter": "{{ 'a'|center(100000000000) }}",
    "format": "{{ '{:>100000000000}'.format('a') }}",
    "percent": "{{ '%100000000000d' % 1 }}",
    "replace": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 1000000 %}{{ s|replace('a', s) }}",
    "join": LISTS + "{{ x|join('a' * 1000000) }}",
    "output": LISTS + "{% set s = 'a' * 1000000 %}{% for a in x %}{{ s }}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_would_not_end_or_fills_the_memory_is_stopped(name: str) -> None:
    with pytest.raises((SecurityError, RecursionError, OverflowError)):
        compile_template(BOMBS[name])()


def test_an_ordinary_template_writes_what_jinja_writes() -> None:
    text = (
        "{% macro m(x) %}[{{ x|trim }}]{% endmacro %}{% for a in names if a %}{{ loop.index ~ ':' ~ m(a) + '%s' % a }}"
        "{{ a.replace('b', 'cc')|upper }}"
        "{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}{{ names|join('-') }}"
        "{{ {'a': 2 * 3}|tojson }}{{ ['x'] * 2 + ['y'] }}{{ '{}'.format(names|length) }}"
    )
    expected = "1:[a]aA, 2:[b]bCCa-b-{\"a\": 6}['x', 'x', 'y']3"
    assert compile_template(text)(names=["a", "b", ""]) == expected


def test_a_long_conversation_is_not_limited() -> None:
    messages = [{"role": "user", "content": "x" * 100_000}] * 300
    text = compile_template("{% for m in messages %}{{ '<' + m.role + '>' + m.content|trim }}{% endfor %}")(
        messages=messages
    )
    assert len(text) == 300 * 100_006


def test_a_template_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RecipeError):
        compile_template("{% if a %}" * 5000 + "{% endif %}" * 5000)
