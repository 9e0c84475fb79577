"""Texts on which tokenizers tend to differ, for comparing a fast one with its reference when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

# Each is used with every pair of `_CONTEXTS` around it.
_CORES = (
    "a",
    "Hello world",
    "don't they'll I'VE we'd",
    "a  b",
    "a   b    c     d",
    "tabs\tand\t\ttabs",
    "1234567890 3.14159 1,000,000",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    "def f(x):\n    if x:\n        return x\n\n\treturn None",
    "#include <stdio.h>\r\nint main(void) {\r\n  return 0;\r\n}",
    '{"key": [1, 2.5, null, true], "text": "\\u00e9\\n"}',
    "<div class='a'>&nbsp;&lt;b&gt;</div>",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "```python\nprint('hi')\n```",
    "    indented\n        twice\n            thrice",
    "https://example.org/a/b?c=d&e=f#g",
    "naïve café São Tomé Ærøskøbing",
    "Straße ẞ ǅ İ ı ſ",
    "Привет, мир! Ёлка",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界！今天天气很好。",
    "こんにちは世界。カタカナﾊﾝｶｸ",
    "안녕하세요 세계",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "e\u0301 n\u0303 decomposed",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "no\u00a0break\u2003em\u3000ideographic",
    "line\u2028separator\u2029paragraph\x85next",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f",
    "\U0001f9ff\U000e0041\U0010ffff",
    "\ufffd replacement \u2581 lower block \u2581\u2581",
    "½ ² ³ ① Ⅷ ٣ ४",
    "“quoted” ‘text’ — dash … ellipsis",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α∧¬β",
    "$$\\frac{a}{b} \\le \\sum_{i=1}^{n} x_i$$",
    "<s> </s> <unk> <pad>",
    "</s>",
    "<s>[INST] <<SYS>>\nx\n<</SYS>>\n\ny [/INST] z </s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<|im_start|>user\nhi<|im_end|>",
    "<0x0A> <0xFF>",
    "▁▁a▁b",
    "USER: hi ASSISTANT: hello",
    "....!!!!????;;;;",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ThisIsAVeryLongIdentifierWithoutAnySpaces0123456789abcdefABCDEF",
)
_CONTEXTS = (("", ""), (" ", ""), ("", "  "), ("\n", "\n"), ("x", "x"), ("  \t", " \n "))
_RUNS = tuple(
    character * count
    for character in (" ", "\n", "\t", "\r\n", "=", "-", "a", "0", "é", "漢", "😀", "▁")
    for count in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100)
)
DIFFICULT_TEXTS: tuple[str, ...] = (
    "",
    *(before + core + after for core in _CORES for before, after in _CONTEXTS),
    *_RUNS,
    *(f"a{' ' * count}b\n{' ' * count}c" for count in range(1, 25)),
)


def first_difference(
    texts: Sequence[str], left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]
) -> tuple[str, list[int], list[int]] | None:
    """Return the first text for which two lists of ids differ, and both ids; None if there is none."""
    for text, left_ids, right_ids in zip(texts, left, right, strict=True):
        if list(left_ids) != list(right_ids):
            return text, list(left_ids), list(right_ids)
    return None
