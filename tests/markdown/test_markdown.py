"""ChatGPT's HTML becomes the markdown it was rendered from: each layout, each edge case, any input."""

# ruff: noqa: E501 (tables of examples, one to a line)

from __future__ import annotations

import re
import time
from html import escape, unescape
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.markdown import Citations, looks_like_html, strip_chrome, to_markdown, unwrap_prompt, walk_html
from tests.support.html_elements import MARKDOWN, parts, rendered

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "markup").glob("*.html"))
ROOT = '<div class="markdown prose w-full break-words dark:prose-invert light">'


def markdown(html: str, citations: Citations = "links") -> str:
    """Convert the contents of an answer's root element."""
    return to_markdown([f"{ROOT}{html}</div>"], citations=citations)[0]


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_each_layout_of_the_markup_becomes_its_markdown(path: Path) -> None:
    html = path.read_text(encoding="utf-8").removesuffix("\n")
    assert looks_like_html(html)
    assert to_markdown([html]) == [path.with_suffix(".md").read_text(encoding="utf-8").removesuffix("\n")]


CASES = {
    "entities decode exactly once": ("<p>&amp;&amp; &lt;b&gt; &quot;x&quot; &#39;y&#39;</p>", "&& <b> \"x\" 'y'"),
    "an entity that was text stays text": ("<p>&amp;lt; and &amp;copy; but &amp;nonsense;</p>", r"\&lt; and \&copy; but &nonsense;"),
    "entities in code decode once": ("<p><code>&amp;lt;</code></p>", "`&lt;`"),
    "named entities": ("<p>a&nbsp;b &mdash; c</p>", "a\u00a0b — c"),
    "snake_case stays": ("<p>my_snake_case and __init__.py and _x</p>", r"my_snake_case and \_\_init\_\_.py and _x"),
    "stars that are no emphasis stay": ("<p>a * b, 5 *x, 2 ** 3</p>", "a * b, 5 *x, 2 ** 3"),
    "stars that would be emphasis": ("<p>2*3*4 and *x*</p>", r"2\*3\*4 and \*x\*"),
    "a star beside strong": ("<p>*note: <strong>x</strong></p>", "*note: **x**"),
    "angle brackets stay": ("<p>vector&lt;int&gt; and &lt;stdio.h&gt;</p>", "vector<int> and <stdio.h>"),
    "an address in angle brackets is no link": ("<p>&lt;https://a.b&gt;</p>", r"\<https://a.b>"),
    "brackets stay": ("<p>a[0] [Name] [x] (y)</p>", "a[0] [Name] [x] (y)"),
    "brackets that would be a link": ("<p>f[0](x)</p>", r"f\[0](x)"),
    "a definition": ("<p>[Speaker]: hello</p>", r"\[Speaker]: hello"),
    "a definition needs one word": ("<p>[Speaker]: hello there</p>", "[Speaker]: hello there"),
    "backslashes": (r"<p>C:\new \* \(x\)</p>", r"C:\new \\* \\(x\\)"),
    "backticks": ("<p>a ` b, `c` `</p>", r"a \` b, \`c\` \`"),
    "one backtick": ("<p>a ` b</p>", "a ` b"),
    "tildes": ("<p>~5 ~~a~~ ~~</p>", r"~5 \~\~a\~\~ \~\~"),
    "a number that begins a line": ("<p>1. x</p><p>2019. A year</p><p>1.5 x</p>", "1\\. x\n\n2019\\. A year\n\n1.5 x"),
    "a number on a later line": ("<p>x\n2. y\n1. z</p>", "x\n2. y\n1\\. z"),
    "signs that begin a line": ("<p># x</p><p>#x</p><p>- x</p><p>-5</p><p>+ x</p><p>&gt; x</p>", "\\# x\n\n#x\n\n\\- x\n\n-5\n\n\\+ x\n\n\\> x"),
    "underlines and rules": ("<p>x\n===\ny\n---</p><p>***</p>", "x\n\\===\ny\n\\---\n\n\\*\\*\\*"),
    "a table that is text": ("<p>a | b\n--- | ---</p>", "a | b\n\\--- | ---"),
    "a table of one column that is text": ("<p>a |\n:-</p><p>a\n:-</p>", "a |\n\\:-\n\na\n:-"),
    "lines of a paragraph stay lines": ("<p>one\n  two\nthree</p>", "one\n  two\nthree"),
    "white space at a line's end is no break": ("<p>one \ntwo</p>", "one\ntwo"),
    "br and a line break are one": ("<p>one<br>\ntwo<br/>three</p>", "one  \ntwo  \nthree"),
    "a closing br is a break": ("<p>one</br>two</p><ul><li>a</br>\nb</li></ul>", "one  \ntwo\n\n- a  \n  b"),
    "a closing br after a br is none of its own": ("<p>one<br></br>two</br></br>three</p>", "one  \ntwo\n\nthree"),
    "a closing br in a cell and in code": ("<table><tr><td>a</br>b</td></tr></table><pre><code>a</br>b<br></br>c</code></pre>", "| a<br>b |\n| --- |\n\n```\na\nb\nc\n```"),
    "two breaks end a paragraph": ("<p>one<br><br>two</p>", "one\n\ntwo"),
    "white space goes outside emphasis": ("<p>a<strong> b </strong>c</p>", "a **b** c"),
    "emphasis in emphasis": ("<p><em><strong>a</strong> b</em> <strong>c<b>d</b></strong></p>", "***a** b* **cd**"),
    "emphasis beside emphasis": ("<p><em>a</em><strong>b</strong> <strong></strong></p>", "*a*__b__"),
    "code spans": ("<p><code>a`b</code> <code>`</code> <code> </code><code></code></p>", "``a`b`` `` ` `` ` `"),
    "raw tags in a code span": ("<p><code><timestamp>x</timestamp></code></p>", "`<timestamp>x</timestamp>`"),
    "headings": ("<h1>A</h1><h6>C #</h6><h2></h2>", "# A\n\n###### C \\#"),
    "a heading of two lines": ("<h2>a<br>\nb</h2><h4>c\nd</h4>", "a  \nb\n---\n\n#### c d"),
    "two lists in a row": ("<ul><li>a</li></ul><ul><li>b</li></ul><ol><li>c</li></ol><ol><li>d</li></ol>", "- a\n\n+ b\n\n1. c\n\n1) d"),
    "a list in an item without text": ("<ul><li><ol><li>a</li></ol></li><li></li></ul>", "- 1. a\n-"),
    "text after a nested list": ("<ul><li>a<ul><li>b</li></ul>c</li></ul>", "- a\n\n  - b\n\n  c"),
    "a numbered list that goes on": ('<ol start="9"><li>a</li><li>b<br>c</li></ol>', "9. a\n10. b  \n    c"),
    "code in a quote in an item": ("<ul><li><blockquote><pre><code>a\n\nb\n</code></pre></blockquote></li></ul>", "- > ```\n  > a\n  >\n  > b\n  > ```"),
    "a rule in an item": ("<ul><li>a<hr></li></ul>", "- a\n  ***"),
    "items without a list": ("<li>a<li>b", "- a\n- b"),
    "an empty quote": ("<p>a</p><blockquote></blockquote>", "a\n\n>"),
    "a table in a quote": ("<blockquote><table><tr><th>a</th></tr><tr><td>b</td><td>c</td></tr></table></blockquote>", "> | a |  |\n> | --- | --- |\n> | b | c |"),
    "code in a cell": ("<table><tr><td><pre><code>a|b\nc</code></pre></td></tr></table>", "| `a\\|b`<br>`c` |\n| --- |"),
    "a table in a table": ("<table><tr><td>a<table><tr><td>b</td><td>c|</td></tr></table></td></tr></table>", "| a<br>b c\\| |\n| --- |"),
    "a target in need of brackets": ('<p><a href="http://a b/(c">x</a></p>', "[x](<http://a%20b/(c>)"),
    "a bracket in a link": ('<p><a href="/u">a]b</a> <a href="mailto:a@b.c">a@b.c</a></p>', "[a\\]b](/u) <a@b.c>"),
    "tracking goes, the rest of the query stays": ('<p><a href="https://a.b/?utm_source=chatgpt.com&amp;q=1#c">x</a></p>', "[x](https://a.b/?q=1#c)"),
    "a button in a paragraph": ("<p>a<button><svg><title>t</title></svg>Kopieren</button>b</p>", "ab"),
    "a button without an end": ("<p>a<button>b</p><p>c</p>", "ab\n\nc"),
    "the code is Copy code": ("<pre><div><span>text</span><button>Copy code</button></div><code>Copy code\n</code></pre>", "```text\nCopy code\n```"),
    "only one newline is trimmed": ("<pre><code>\na\n  \n\n</code></pre>", "```\n\na\n  \n\n```"),
    "a last line of spaces goes": ("<pre><code>a  \n  \n\t\n</code></pre><pre><code>  </code></pre>", "```\na  \n```\n\n```\n```"),
    "a last line of spaces in an item's code goes": ("<ol><li>a<pre><code>b\n  \nc\n  </code></pre></li></ol>", "1. a\n   ```\n   b\n     \n   c\n   ```"),
    "highlighted white space stays": ("<pre><code><span class='a'>if</span><span> </span><span>\n\t</span>x</code></pre>", "```\nif \n\tx\n```"),
    "an empty code block": ("<pre><code></code></pre>", "```\n```"),
    "a pre without code": ("<pre>\na &lt; b\n c</pre>", "```\na < b\n c\n```"),
    "a pre of boxes": ("<pre><div>a</div><div>b</div><button>Copy</button></pre>", "```\na\nb\n```"),
    "a junk language": ('<pre><code class="hljs language-1234">x</code></pre>', "```1234\nx\n```"),
    "code in a numbered item": ("<ol><li>a<pre><code>b\n</code></pre></li><li>c</li></ol>", "1. a\n   ```\n   b\n   ```\n2. c"),
    "unbalanced boxes": ("</div></div><p>a</p></div></ul></td></li><p>b", "a\n\nb"),
    "inline styles and inputs of extensions": ('<p style="color:red">a<input type="hidden" value="x"> b</p>', "a b"),
    "comments": ("<p>a<!-- x --> b</p>", "a b"),
    "a formula without its source keeps its glyphs": ('<p><span class="katex"><span class="katex-html" aria-hidden="true">x²</span></span></p>', "x²"),
    "code in what is left out": ("<button><pre><code>a</code></pre></button><pre><code>b</code></pre>", "```\nb\n```"),
    "control characters are no marks": ("<p>a\x01b\x0ec</p>", "abc"),
    "a tilde beside strike": ("<p><del>~ a ~~~ b</del> <del>c ~</del></p>", r"~~\~ a \~\~\~ b~~ ~~c \~~~"),
    "wide white space goes outside emphasis": ("<p><strong>注意\u3000</strong>x <em>&nbsp;y&nbsp;</em></p>", "**注意**\u3000x \u00a0*y*\u00a0"),
    "white space alone is no emphasis": ("<p>a <strong>&nbsp;</strong> b</p>", "a \u00a0 b"),
    "a star that would end our own emphasis": ("<p><em>** a b* c</em></p>", r"*\*\* a b\* c*"),
    "stars at the end of emphasis": ("<p><strong>*a **</strong></p>", r"**\*a \*\***"),
    "a link in a link's text": ('<p><a href="/u">see [l](v) x</a></p>', r"[see \[l\](v) x](/u)"),
    "a backslash before a break in a cell": ("<table><tr><td>a \\<br>b</td></tr></table>", "| a \\\\<br>b |\n| --- |"),
    "a table after a quote in an item": ("<ul><li><blockquote><p>a</p></blockquote><table><tr><td>b</td></tr></table></li></ul>", "- > a\n\n  | b |\n  | --- |"),
    "two quotes in an item": ("<ul><li><blockquote><p>a</p></blockquote><blockquote><p>b</p></blockquote></li></ul>", "- > a\n\n  > b"),
    "a formula after a list in an item": ('<ul><li>a<ul><li>b</li></ul><span class="katex-display" data-math-source="x"></span></li></ul>', "- a\n\n  - b\n\n  $$\n  x\n  $$"),
    "numbers that go on after a quote in an item": ('<ul><li><blockquote><p>a</p></blockquote><ol start="3"><li>b</li></ol></li></ul>', "- > a\n\n  3. b"),
    "a formula without any source is shown once": ('<p>a <span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>E</mi></mrow></semantics></math></span><span class="katex-html" aria-hidden="true"><span class="mord">E</span><span>\u200b</span></span></span> b</p>', "a E b"),
    "an editor's lines in boxes": ('<pre><div class="cm-editor"><div class="cm-content"><div class="cm-line">a</div><div class="cm-line"><br></div><div class="cm-line">  b</div><div class="cm-line"><br></div></div></div></pre>', "```\na\n\n  b\n```"),
    "an editor beside other code elements": ('<pre><div><code>Python</code></div><div class="cm-editor"><div class="cm-content">x<br>y</div></div></pre>', "```python\nx\ny\n```"),
    "a label and a button without its tag": ("<pre><div>pythonCopy code</div><code>x\n</code></pre>", "```python\nx\n```"),
    "early 2023, without a language": ('<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative text-gray-200 bg-gray-800"><button class="flex ml-auto gap-2"><svg></svg>Copy code</button></div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre-wrap hljs">a\n</code></div></div></pre>', "```\na\n```"),
    "raised and lowered digits": ("<p>10<sup>6</sup> m<sup>-2</sup>, H<sub>2</sub>O, the 1<sup>st</sup><sup><a href=\"#n\">3</a></sup></p>", "10⁶ m⁻², H₂O, the 1st[3](#n)"),
    "attributes in another order": ('<p><img width="9" alt="a" class="x" src="https://b/c.png"> <a rel="x" href="/u" class="y">z</a></p>', "![a](https://b/c.png) [z](/u)"),
    "a bare table of 2023": ("<table><thead><tr><th>a</th><th style=\"text-align: left\">b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>", "| a | b |\n| --- | :-- |\n| 1 | 2 |"),
    "carriage returns": ("<p>a\r\nb</p><pre><code>c\r\nd</code></pre>", "a\nb\n\n```\nc\nd\n```"),
}  # fmt: skip


@pytest.mark.parametrize(("html", "expected"), CASES.values(), ids=CASES)
def test_each_element_becomes_its_markdown(html: str, expected: str) -> None:
    assert markdown(html) == expected


def test_citations_can_be_dropped() -> None:
    pill = '<span data-testid="webpage-citation-pill"><a href="https://a.b">A</a></span>'
    assert markdown(f"<p>x{pill}.</p>") == "x ([A](https://a.b))."
    assert markdown(f"<p>x{pill}.</p>", "drop") == "x."


CUT_OFF = {
    "in a tag of the code": ("<ol><li>a<pre><code>b\n  <span class='hljs-", "1. a\n   ```\n   b\n   ```"),
    "in an attribute": ('<p>a <strong>b</strong> c <a href="http://x.y/z', "a **b** c"),
    "in a closing tag": ("<p>a <em>b</e", "a *b*"),
    "in the code of an item of a table": ("<table><tr><td><pre><code>a|", "| `a\\|` |\n| --- |"),
}


@pytest.mark.parametrize(("html", "expected"), CUT_OFF.values(), ids=CUT_OFF)
def test_a_truncated_answer_is_closed_and_half_a_tag_is_not_text(html: str, expected: str) -> None:
    assert to_markdown([f"{ROOT}{html}"]) == [expected]


def test_an_answer_keeps_a_counter_that_is_its_text() -> None:
    assert markdown("<p>1 / 2</p><p>is a half</p>") == "1 / 2\n\nis a half"


ROOTS = {
    "2022, with an id as a class": '<div class="request-:r0:-3 markdown prose w-full break-words dark:prose-invert">',
    "while it streams": '<div class="result-streaming markdown prose w-full break-words dark:prose-invert light">',
    "classes in another order": '<div class="dark prose break-words markdown-new-styling w-full markdown">',
    "2026": '<div class="markdown prose dark:prose-invert wrap-break-word w-full light markdown-new-styling">',
    "attributes before the class": '<div data-section-id="1x" data-start="0" dir="auto" class="markdown prose">',
    "single quotes": "<div class='markdown prose'>",
    "with the wrappers of a turn": '<div class="min-h-[20px] flex"><div class="prose markdown" style="color: red">',
}


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
def test_the_root_of_an_answer_is_recognised_by_its_classes_in_any_order(root: str) -> None:
    code = '<pre data-start="5"><code data-line="1" class="language-js whitespace-pre! hljs">a &lt; b\n</code></pre>'
    html = f'{root}<p data-section-id="2y" data-is-last-node="">my_a &amp; b</p>\n{code}</div>'
    assert looks_like_html(html)
    assert to_markdown([html]) == ["my_a & b\n\n```js\na < b\n```"]


CHROME_AROUND_A_ROOT = {
    "a counter before": f"<div>2 / 3</div>{ROOT}<p>a</p></div>",
    "a name before": f"<div><img alt='User' src='/a.png'>ChatGPT</div>{ROOT}<p>a</p></div>",
    "a count after": f"{ROOT}<p>a</p></div><div>Copy123 chars / 45 words</div>",
    "both": f"\u200b<div>2 / 3</div>{ROOT}<p>a</p></div><div>Copy123 chars / 45 words</div>",
}


@pytest.mark.parametrize("html", CHROME_AROUND_A_ROOT.values(), ids=CHROME_AROUND_A_ROOT)
def test_elements_around_an_answer_are_removed(html: str) -> None:
    assert looks_like_html(html)
    assert to_markdown([html]) == ["a"]


NOT_CHATGPT = {
    "plain text": "Hello there",
    "markdown": "Use `<div class='markdown'>`:\n\n```html\n<div class=\"markdown\">x</div>\n```",
    "HTML as the subject": "<!DOCTYPE html>\n<html><body><div class='markdown-body'>x</div></body></html>",
    "a tag": "<p>Hello</p>",
    "angle brackets": "<stdio.h> is a header",
    "nothing": "",
}


@pytest.mark.parametrize("text", NOT_CHATGPT.values(), ids=NOT_CHATGPT)
def test_other_text_is_not_taken_for_chatgpt_markup(text: str) -> None:
    assert not looks_like_html(text)


STRIPPED = {
    "a counter on its own line": ("1 / 2\n\nHello", "Hello"),
    "a fraction in a sentence": ("1 / 2 of the class", "1 / 2 of the class"),
    "a counter that is all": ("1 / 2", "1 / 2"),
    "a counter further down": ("Hello\n1 / 2\nx", "Hello\n1 / 2\nx"),
    "invisible characters": ("\ufeff\u200bHello", "Hello"),
    "a count of characters": ("Hello\nCopy12 chars / 34 words", "Hello"),
    "a count in a line": ("HelloCopy12 chars / 34 words", "Hello"),
    "Copy code in a fence's header": ("```pythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
    "Copy code before the code": ("```\npythonCopy codeimport os\nx\n```", "```python\nimport os\nx\n```"),
    "a count in a fence's header": ("```pythonCopy12 chars / 3 words\nx\n```", "```python\nx\n```"),
    "an empty block": ("a\n```pythonCopy code\n```\nb", "a\nb"),
    "an empty block without a language": ("a\n```\nCopy code\n```\nb", "a\nb"),
    "Copy code as code": ("```python\nCopy code\nx\n```", "```python\nCopy code\nx\n```"),
    "a count as code": ("```\nx\nCopy12 chars / 34 words\n```", "```\nx\nCopy12 chars / 34 words\n```"),
    "Copy code in prose": ("Press Copy code.", "Press Copy code."),
    "a block that does not end": ("```jsCopy code\nlet x", "```js\nlet x"),
    "a fence in a longer fence": ("````markdown\n```pythonCopy code\n```\n````", "````markdown\n```pythonCopy code\n```\n````"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), STRIPPED.values(), ids=STRIPPED)
def test_chrome_is_removed_from_text_but_not_from_code(text: str, expected: str) -> None:
    assert strip_chrome(text) == expected


PROMPTS = {
    "a bubble": ('<div class="whitespace-pre-wrap">if a &lt; b:\n  &amp;x\n</div>', "if a < b:\n  &x\n"),
    "a bubble in a turn": (
        '<div data-message-author-role="user" class="x"><div class="w-full"><div class="whitespace-pre-wrap">\n'
        "#include <stdio.h></div></div></div>",
        "\n#include <stdio.h>",
    ),
    "a bubble of 2025, its name and its buttons": (
        '<article data-turn="user" class="x"><h5 class="sr-only">You said:</h5><div data-message-author-role="user">'
        '<div class="bubble"><div class="whitespace-pre-wrap">a &lt;b&gt;\n &amp;lt;</div></div></div>'
        '<div><button aria-label="Edit"><svg><path d="M1"></path></svg></button></div></article>',
        "a <b>\n &lt;",
    ),
    "a bubble of 2023": ('<div class="min-h-[20px] flex whitespace-pre-wrap"><div>a\n</div></div>', "a\n"),
    "a bubble in capitals": ('<DIV CLASS="whitespace-pre-wrap">a</DIV>', "a"),
    "a question about a class": ('<div class="whitespace-pre-wrap">{text}</div>\n\nWhy does it not wrap?', None),
    "a component that was pasted": ('<div class="whitespace-pre-wrap">\n  <p>{text}</p>\n</div>', None),
    "a bubble that does not end": ('<div class="whitespace-pre-wrap">a', None),
    "a picture in the turn": (
        '<div data-turn="user"><img src="blob:x"><div class="whitespace-pre-wrap">what is it?</div></div>',
        None,
    ),
    "an answer's wrapper": (f'<div class="whitespace-pre-wrap">{ROOT}a</div></div>', None),
    "HTML that was asked about": ('<div style="width: 100vh">x</div>', None),
    "text": ("<![CDATA[ &amp; whitespace-pre-wrap", None),
}


@pytest.mark.parametrize(("text", "expected"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_is_text_unless_its_bubble_was_stored(text: str, expected: str | None) -> None:
    assert unwrap_prompt(text) == (text if expected is None else expected)


def test_nesting_of_any_depth_is_converted_with_limited_indentation() -> None:
    html = f"{ROOT}{'<ul><li>x'.join(['', *map(str, range(1500))])}{'</li></ul>' * 1500}</div>"
    converted = to_markdown([html])[0]
    assert re.findall(r"\d+", converted) == [str(n) for n in range(1500)]
    assert len(converted) < 3 * len(html)


HOSTILE = {
    "open buttons": "<button>a" * 9000,
    "nested formulas": '<span class="katex">' * 3000 + "</span>" * 3000,
    "tables in tables": "<table><tr><td>a" * 3000,
    "open comments": "<!-- " * 9000,
    "brackets": "<p>" + "[" * 9000 + "](x)" * 9000,
    "stars": "<p>" + "*a _b " * 9000,
    "blocks in blocks": "<pre><pre></pre>x" * 9000,
    "lines of spaces in code": "<pre><code>x" + "\n " * 9000,
    "icons in code": "<pre>" + "<svg>" * 9000 + "</svg><code>x",
    "quotes in tags": "<a b='c\" " * 9000,
    "boxes": '<div class="whitespace-pre-wrap">' * 9000 + "x" + "</div>" * 9000,
}


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE)
def test_hostile_markup_takes_linear_time(html: str) -> None:
    start = time.process_time()
    converted = to_markdown([f"{ROOT}{html}"])[0]
    unwrap_prompt(html)
    strip_chrome(html)
    assert time.process_time() - start < 3
    assert len(converted) < 4 * len(html) + 100


def test_lone_surrogates_do_not_stop_a_batch() -> None:
    answers = [f"{ROOT}<p>a\ud800 *b*</p></div>", f"{ROOT}<p>c</p></div>"]
    assert to_markdown(answers) == ["a\ud800 \\*b\\*", "c"]


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────

TAGS = ["p", "ul", "ol", "li", "strong", "em", "code", "blockquote", "table", "tr", "td", "h2", "div", "span", "a", "del"]  # fmt: skip
TEXT = st.text("abcé中1 *_`[]()#>-+.|~\\!:=\n&<", max_size=12).map(lambda text: escape(text, quote=False))
FRAGMENTS = st.one_of(
    TEXT,
    st.sampled_from(TAGS).map(lambda tag: f"<{tag}>"),
    st.sampled_from(TAGS).map(lambda tag: f"</{tag}>"),
    st.sampled_from(
        ["<br>", "</br>", "<hr>", "<pre><code>", "</code></pre>", '<a href="x">', "<li>\n<p>", "<!-- c -->", "<P>"]
    ),
)


def visible(html: str) -> list[str]:
    """Return the runs of word characters of an answer's text, element by element."""
    texts = re.split(r"</?[a-zA-Z][^<>]*>|<!--[^<>]*-->", html)
    return [word for text in texts for word in re.findall(r"[^\W_]+", unescape(text))]


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map("".join))
def test_any_markup_converts_and_loses_no_word(html: str) -> None:
    converted = markdown(html)
    at = 0
    for word in visible(html):
        position = converted.find(word, at)
        assert position >= 0, f"{word!r} of {html!r} is not in {converted!r}"
        at = position + len(word)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_converts_and_is_stripped(text: str) -> None:
    assert isinstance(to_markdown([text, f"{ROOT}{text}"])[1], str)
    assert isinstance(strip_chrome(text), str)
    assert isinstance(unwrap_prompt(text), str)
    looks_like_html(text)


LITERAL = (
    st.lists(st.text("aab1 *_`[]()<>&#-+.|~\\!:=é", min_size=1, max_size=10).map(str.strip), min_size=1, max_size=3)
    .map(lambda lines: "\n".join(line for line in lines if line) or "x")
    .map(lambda text: escape(text, quote=False))
)
MARKED = st.sampled_from([" <strong>x</strong> ", " <em>b c</em> ", " <code>*a</code> ", ' <a href="u">y</a> ', " "])
LINES = st.tuples(LITERAL, MARKED, LITERAL).map(lambda texts: "".join(texts).strip())
LINE = LINES.map(lambda text: text.replace("\n", " "))
LISTS = st.tuples(st.sampled_from(["ul", "ol"]), st.lists(LINES, min_size=2, max_size=3), st.booleans()).map(
    lambda drawn: f"<{drawn[0]}>{''.join(_item(text, drawn[2]) for text in drawn[1])}</{drawn[0]}>"
)
BLOCKS = st.one_of(
    LINES.map(lambda text: f"<p>{text}</p>"),
    LINE.map(lambda text: f"<h3>{text}</h3>"),
    LINES.map(lambda text: f"<blockquote><p>{text}</p></blockquote>"),
    LINE.map(lambda text: f"<table><thead><tr><th>{text}</th></tr></thead><tbody><tr><td>{text}</td></tr></tbody></table>"),
    st.just("<hr>"),
    LISTS,
)  # fmt: skip


def _item(text: str, loose: bool) -> str:
    return f"<li><p>{text}</p></li>" if loose else f"<li>{text}</li>"


@settings(max_examples=300, deadline=None)
@given(st.lists(BLOCKS, min_size=1, max_size=2).map("".join))
def test_markdown_renders_as_the_html_it_came_from(html: str) -> None:
    assert rendered(markdown(html)) == parts(html)


TOKENS = [
    "a", "b1", "é", "中", "x_y", "[n]", "]", "],", "#1", "#", "-5", "&amp;", "&lt;", "&gt;", "&quot;q&quot;", "1.5", "2.", "1.", "|", r"\n", ":", "*", "~3", "",
]  # fmt: skip
PLAIN = st.lists(st.sampled_from(TOKENS), max_size=6)
PHRASES = st.tuples(
    PLAIN.map(" ".join), MARKED, PLAIN.map(" ".join), st.sampled_from(["", "\n", "<br>\n", "<br />\n", "</br>"])
)
TEXTS = st.lists(PHRASES.map("".join), min_size=1, max_size=3).map("".join)
FLAT_BLOCKS = st.one_of(
    TEXTS.map(lambda text: f"<p>{text}</p>"),
    TEXTS.map(lambda text: f"<h2>{text}</h2>"),
    st.sampled_from(["<hr>", "<hr />", "<pre><code class='hljs language-c'>a*b\n  \n</code></pre>"]),
    st.tuples(st.sampled_from(["<ul>", "<ol>", '<ol start="9">']), st.lists(TEXTS, min_size=1, max_size=3), st.booleans()).map(
        lambda drawn: f"{drawn[0]}{''.join(_item(text, drawn[2]) for text in drawn[1])}</{drawn[0][1:3]}>"
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(FLAT_BLOCKS, max_size=3).map("".join), min_size=1, max_size=4))
@example(["<p>a <strong>x</strong> a<br>\n <strong>x</strong> a</p>"])
def test_fast_path_and_walker_agree(answers: list[str]) -> None:
    html = [f"{ROOT}{answer}</div>" for answer in answers]
    assert to_markdown(html) == [walk_html(answer) for answer in html]


CODE = st.lists(st.sampled_from(["", "  x = [1] * 2", "\tif a < b && c:", "```", "````md", "<div>&amp;</div>", "- a", "  ", "# b"]), min_size=1, max_size=4).map("\n".join)  # fmt: skip
FORMS = [
    '<pre><div class="bg-black rounded-md"><div><span>c</span><button>Copy code</button></div><div><code class="!whitespace-pre hljs language-c">{}\n</code></div></div></pre>',
    '<pre class="overflow-visible!"><div><div>c</div><div class="sticky"><button>複製</button></div><code class="whitespace-pre! language-c"><span><span>{}</span></span><span>\n</span></code></div></pre>',
    '<pre><div><div><svg></svg>C</div><div class="cm-editor"><pre class="cm-content">{}\n</pre></div></div></pre>',
]
AROUND = [
    "<ul><li>{}</li></ul>",
    '<ol start="9"><li>a</li><li><p>b</p>{}</li></ol>',
    "<blockquote>{}</blockquote>",
    "<ul><li>a{}b</li></ul>",
    "<p>a</p>{}<hr>",
]


@settings(max_examples=200, deadline=None)
@given(CODE, st.sampled_from(FORMS), st.lists(st.sampled_from(AROUND), max_size=5))
def test_code_is_exact_at_any_depth_except_for_trailing_blank_lines(code: str, form: str, around: list[str]) -> None:
    html = form.replace("{}", escape(code, quote=False))
    for element in around:
        html = element.replace("{}", html)
    fences = [(t.info, t.content) for t in MARKDOWN.parse(markdown(html)) if t.type == "fence"]
    kept = re.sub(r"(?:(?:\A|\n) +)+\Z", "", code)
    assert fences == [("c", f"{kept}\n" if kept else "")]
