"""Texts that the tests of tokenizers share."""

import textwrap
from pathlib import Path

TEXTS = [
    Path(textwrap.__file__).read_text(),
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n" * 20,
    "The quick brown fox — jumps 12345 times over lazy dogs.\n" * 20,
    "ärger über Ωmega 漢字 🙂\n" * 10,
    "Don't we'll they're IT'S 2024-01-02 <html><body>a &amp; b</body></html>\r\n" * 10,
    "abcdefghij klmnop qrstuv wxyz " * 10,
]

NASTY = [
    "",
    "\n",
    " ",
    " a",
    "  x",
    "▁",
    "▁▁ a▁b ▁",
    "a<|endoftext|>b</s><s><unk><|im_start|><0x0A>",
    "\0\t\r\n\r\r\n\x85\u2028\u2029",
    "🙂é漢字 e\u0301 \u0344 \ufeff\ufffd\U0010ffff\U000323b0 \u0378 \ud7a3",
    "'ſa'S's'LL 'ſ's",
    "12345678901 1½²٣ 3.14159",
    "a\u00a0\u2003\u3000\u200b\x0b\x0c  \n  \n ",
    "a\n  ",
    "x" * 5000,
    " " * 3000 + "a",
    "\t" * 500 + "\n" * 500,
    "don't DON'T dON't " * 20,
]
"""Text on which tokenizers have gone wrong: white space of all kinds, marks, planes, special tokens spelled out."""
