"""A chat template from elsewhere ends, and makes no text that fills the memory; ordinary templates are not limited."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("jinja2")

from jinja2 import Environment
from jinja2.exceptions import SecurityError

from curate.errors import RecipeError
from curate.rendering.chat_template.environment import compile_template

LISTS = "{% set x = range(99999)|list %}"
BIG = "{% set s = 'a' * 50000000 %}"
MANY = "{% for i in range(99999) %}"
END = "{% endfor %}"
# A list of 2 lists of 2 lists ...: few values, of which any text or comparison is endless.
NESTED = "{% set n = namespace(l=['a']) %}{% for i in range(70) %}{% set n.l = [n.l, n.l] %}{% endfor %}"
EQUAL = NESTED.replace("n.", "m.").replace("set n", "set m") + NESTED
TUPLES = "{% set n = namespace(l=('a',)) %}{% for i in range(70) %}{% set n.l = (n.l, n.l) %}{% endfor %}"
BOMBS = {
    "loops": LISTS + "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "loops that pass over all": LISTS + "{% for a in x %}{% for b in x if false %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "caller": "{% macro f(n) %}{% set c = caller %}{% if n %}{% call f(n - 1) %}{{ c() }}{{ c() }}{% endcall %}"
    "{% else %}{{ c() }}{% endif %}{% endmacro %}{% call f(60) %}{% endcall %}",
    "block": "{% block b %}{{ self.b() if namespace() }}{{ self.b() }}{% endblock %}",
    "recursive": "{% set x = range(9)|list %}{% for a in x recursive %}{{ loop(x) if loop.depth < 90 }}{% endfor %}",
    "macro text": "{% macro f() %}"
    + "a" * 10_000
    + "{% endmacro %}{% set n %}"
    + MANY
    + MANY
    + "{{ f() }}"
    + END * 2
    + "{% endset %}",
    "set block": "{% set n = namespace(s='ab') %}" + MANY + "{% set t %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = t %}" + END,
    "text of a set block": "{% set n %}" + MANY + MANY + "a" * 1_000 + END * 2 + "{% endset %}",
    "copies": BIG + MANY + "{% set t %}{{ s }}{% endset %}" + END,
    "times": "{{ 'a' * 100000000000 }}",
    "lists": "{{ (['a'] * 100000000000)|length }}",
    "list by list": MANY + MANY + "{% set x = [1] * 99999 %}" + END * 2,
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "plus": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "list plus": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "growing": "{% set n = namespace(s='') %}" + MANY + "{% set n.s = n.s ~ 'a' * 99999 %}" + END,
    "power": "{{ 9 ** (9 ** 9) }}",
    "factors": "{% set n = namespace(i=9) %}" + MANY + "{% set n.i = n.i * n.i %}" + END,
    "hexadecimal": "{% set s = ('f' * 9000000)|int(0, 16) %}",
    "method": "{{ 'a'.ljust(100000000000) }}",
    "zeros": "{{ 'a'.zfill(100000000000) }}",
    "filter": "{{ 'a'|center(100000000000) }}",
    "format": "{{ '{:>100000000000}'.format('a') }}",
    "format of a width": "{{ '{:>{w}}'.format('a', w='99999999999') }}",
    "format of many": BIG + "{{ ('{0}' * 900).format(s) }}",
    "format by a filter": BIG + "{{ ('%s' * 3)|format(s, s, s) }}",
    "percent": "{{ '%100000000000d' % 1 }}",
    "percent of many": BIG + "{{ ('%(a)s' * 900) % {'a': s} }}",
    "replace": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 1000000 %}{{ s|replace('a', s) }}",
    "replace by name": "{% set s = 'a' * 1000000 %}{{ s|replace(new=s, old='a') }}",
    "translate": "{% set s = 'a' * 1000000 %}{{ s.translate({97: s}) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(99999) }}",
    "indent": "{{ ('\n' * 1000000)|indent(99999, blank=true) }}",
    "indent by a text": "{% set s = '\n' * 1000000 %}{{ s|indent(s) }}",
    "join": LISTS + "{{ x|join('a' * 1000000) }}",
    "join one by one": "{{ range(99999)|map('string')|join('a' * 1000000) }}",
    "join method": LISTS + "{{ ('a' * 1000000).join(x|map('string')) }}",
    "join a text": "{{ ('a' * 1000000).join('a' * 1000000) }}",
    "output": LISTS + "{% set s = 'a' * 1000000 %}{% for a in x %}{{ s }}{% endfor %}",
    "upper": BIG + MANY + "{% if s|upper == 'a' %}{% endif %}" + END,
    "lower test": BIG + MANY + "{% if s is lower %}{% endif %}" + END,
    "slices": BIG + MANY + "{% set t = s[1:] %}" + END,
    "in": BIG + MANY + "{% if 'b' in s %}{% endif %}" + END,
    "not in a list": LISTS + MANY + "{% if -1 not in x %}{% endif %}" + END,
    "equal": BIG + "{% set t = s ~ 'b' %}{% set u = s ~ 'c' %}" + MANY + "{% if t == u %}{% endif %}" + END,
    "list of characters": MANY + "{% set x = ('a' * 1000000)|list %}" + END,
    "words": BIG + "{{ (s ~ ' ')|wordcount }}{{ ('a ' * 20000000).split()|length }}",
    "lines": "{{ ('\n' * 50000000).splitlines()|length }}",
    "strip": "{{ ('a' * 10000000).strip('b' * 10000000 ~ 'a') }}",
    "backwards": "{{ ('a' * 1000000).rfind('b' ~ 'a' * 500000) }}",
    "batch": MANY + "{% for x in [1]|batch(99999, 1) %}{% endfor %}" + END,
    "slice": MANY + "{{ [i]|slice(99999)|list|length }}" + END,
    "map": MANY + "{{ range(99999)|map('string')|select('equalto', 'a')|list|length }}" + END,
    "sum": "{{ ([[1] * 9999] * 99999)|sum(start=[])|length }}",
    "sum by place": "{{ ([[1] * 9999] * 99999)|sum(none, [])|length }}",
    "sort": LISTS + MANY + "{% set y = x|sort(reverse=true) %}" + END,
    "arguments": "{% macro f() %}{{ varargs|length }}{% endmacro %}{% set x = [1] * 200000 %}"
    + MANY
    + "{{ f(*x) }}"
    + END,
    "text of nested lists": NESTED + "{{ n.l }}",
    "joined nested lists": NESTED + "{% set x = n.l ~ 'a' %}",
    "string of nested lists": NESTED + "{% set x = n.l|string %}",
    "nested lists as JSON": NESTED + "{% set x = n.l|tojson %}",
    "indented JSON": LISTS + "{{ x|tojson(indent=99999) }}",
    "separated JSON": LISTS + "{{ x|tojson(separators=('a' * 1000000, ':')) }}",
    "format of nested lists": NESTED + "{{ '%s' % (n.l,) }}",
    "error with nested lists": NESTED + "{{ raise_exception(n.l) }}",
    "key of nested lists": NESTED + "{{ {}[n.l].x }}",
    "equal nested lists": EQUAL + "{{ n.l == m.l }}",
    "test of nested lists": EQUAL + "{{ n.l is eq m.l }}",
    "select of nested lists": EQUAL + "{{ [n.l]|select('equalto', m.l)|list|length }}",
    "tuple as key": TUPLES + "{{ {n.l: 1}|length }}",
    "tuple looked up": TUPLES + "{{ {}[n.l] }}{{ {}.get(n.l) }}",
    "tuple in dict": TUPLES + "{{ n.l in {} }}",
    "unique": TUPLES + "{{ [n.l]|unique|list|length }}",
}


SLOW = re.compile(  # take 0.5 to 6 s to be stopped
    "recursive|lower test|not in a list|slice|map|sort|upper|join one by one|join method|caller|arguments|growing"
    "|slices|in|equal|tuple.*|unique|loops that pass over all|.*nested lists.*"
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(SLOW.fullmatch(name))) for name in BOMBS]
)
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


def test_what_is_counted_gives_what_jinja_gives() -> None:
    text = (
        "{% set t %}<{{ a[1:] }}>{% endset %}{{ t ~ 1 ~ [2] }}{{ 'b' in a }}{{ 'k' in d }}{{ a == d.k }}"
        "{{ d|tojson(indent=1) }}{{ d.items()|list }}{{ names|map('upper')|select('ne', 'B')|join('+') }}"
        "{{ [1, 2, 3]|batch(2)|list }}{{ names|map(attribute='0')|list }}{{ [1, 2]|sum }}{{ '%s' % a }}"
        "{% for x in names if x != 'b' %}{{ loop.length }}{{ x }}{% endfor %}{{ names[::-1] }}{{ a|indent(2, true) }}"
        "{{ names|join(attribute='0', d='/') }}{{ a.split('b') }}{{ 'x'.join(names) }}{{ {(1, 2): 3}[(1, 2)] }}"
        "{% macro m(x) %}{{ caller(x) }}{{ varargs }}{% endmacro %}{% call(y) m(1, 2) %}{{ y }}{% endcall %}"
        "{{ dict(z=1) }}{{ a|replace('a', 'o')|title }}{{ names|sort(reverse=true)|first }}{{ names is eq names }}"
    )
    values = {"a": "abc", "d": {"k": "abc", "l": [1, "é"]}, "names": ["a", "b", "cd"]}
    plain = Environment(extensions=["jinja2.ext.loopcontrols"])
    plain.filters["tojson"] = lambda value, **settings: json.dumps(value, ensure_ascii=False, **settings)
    assert compile_template(text)(**values) == plain.from_string(text).render(**values)


def test_a_template_that_is_too_long_is_refused() -> None:
    with pytest.raises(RecipeError, match="200,001 characters, more than 200,000"):
        compile_template("a" * 200_001)


def test_a_long_conversation_is_not_limited() -> None:
    messages = [{"role": "user", "content": "x" * 100_000}] * 300
    text = compile_template("{% for m in messages %}{{ '<' + m.role + '>' + m.content|trim }}{% endfor %}")(
        messages=messages
    )
    assert len(text) == 300 * 100_006


def test_a_template_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RecipeError):
        compile_template("{% if a %}" * 5000 + "{% endif %}" * 5000)
