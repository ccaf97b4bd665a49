r"""One spelling for the many ways in which LaTeX answers are written. Linear passes; nothing is evaluated."""

import re

_SPELLINGS = (
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\dbinom", "\\binom"),
    ("\\lbrace", "\\{"),
    ("\\rbrace", "\\}"),
    ("\\infin ", "\\infty "),
    ("\\%", "%"),
    ("\\$", ""),
    ("$", ""),
    ("\\(", ""),
    ("\\)", ""),
    ("\\[", ""),
    ("\\]", ""),
    ("\u2212", "-"),
    ("\u2013", "-"),
    ("\u00d7", "\\times "),
    ("\u03c0", "\\pi "),
    ("\u221e", "\\infty "),
    ("\u222a", "\\cup "),
    ("\u00b0", " degrees "),
    ("^{\\circ}", " degrees "),
    ("^\\circ", " degrees "),
)
_SUBSTITUTIONS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Thousands: 1,\!234 and 1{,}234. Only here may the separator go; in (1,234) it is a comma between two numbers.
        (r"(?<=\d)(?:,\\!|\{,\})[ ]*(?=\d{3})", ","),
        (r"\\(?:left|right|displaystyle|bigl?|bigr|limits)(?![A-Za-z])", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|bf|rm)[ ]*\{([^{}]*)\}", r" \1 "),
        (r"\\[!,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\frac[ ]*(\d)[ ]*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac[ ]*(\d)[ ]*(?=\{)", r"\\frac{\1}"),
        (r"\\frac[ ]*(\{[^{}]*\})[ ]*(\d)", r"\\frac\1{\2}"),
        (r"\\frac[ ]*(?=\{)", r"\\frac"),
        (r"\\sqrt[ ]*(\w)", r"\\sqrt{\1}"),
        (r"([_^])\{(\w)\}", r"\1\2"),
        # A space means something between two words or numbers only: "1 2" is not 12, and "\pi r" is not "\pir".
        (r" (?=\W)|(?<=\W) ", ""),
    )
)


def normalise_math(text: str) -> str:
    r"""Return a mathematical text in one spelling, for comparing as text.

    Delimiters, `\left`, `\right`, spaces without meaning and a final full stop go; `\dfrac12` becomes `\frac{1}{2}`,
    `\text{...}` its content, degrees a word. Thousands separators become plain commas.
    """
    # Lines and tabs first: the patterns below look for spaces.
    text = " ".join(text.split())
    for written, plain in _SPELLINGS:
        text = text.replace(written, plain)
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text.strip(" ").rstrip(".").strip(" ")
