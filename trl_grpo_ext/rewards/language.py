"""Is the completion written in the expected language's script?"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.named import NamedReward
from trl_grpo_ext.rewards.text import Completion, completion_text

_LATIN = ("LATIN",)
_CYRILLIC = ("CYRILLIC",)
# The first word of a letter's Unicode name is its script.
LANGUAGE_SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("cs da de en es fi fr hu id it nl no pl pt ro sv tr vi".split(), _LATIN),
    **dict.fromkeys("bg ru sr uk".split(), _CYRILLIC),
    **dict.fromkeys("ar fa ur".split(), ("ARABIC",)),
    **dict.fromkeys("hi mr ne".split(), ("DEVANAGARI",)),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
    "zh": ("CJK",),
}
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return name.split(" ", 1)[0]


def script_share(text: str, scripts: Sequence[str]) -> float:
    r"""Return the share of a text's letters that belong to the scripts, in [0, 1]; 0 for a text without letters.

    The names of LaTeX commands (`\frac`) are not counted.
    """
    letters = [character for character in _LATEX_COMMAND.sub("", text) if character.isalpha()]
    return sum(_script(letter) in scripts for letter in letters) / len(letters) if letters else 0.0


@dataclass(frozen=True, kw_only=True)
class LanguageConsistency(NamedReward):
    """The share of the completion's letters that belong to the language's script, after DeepSeek-R1 (arXiv 2501.12948).

    Range [0, 1]; a completion without letters scores 0. R1 counts words of the target language; this counts letters of
    its Unicode script, which needs no model and can't be mistaken about short texts.

    Failure modes: languages that share a script are not told apart (English and Spanish); for Chinese and Japanese,
    code, formulas and names in Latin letters lower the share; Japanese accepts Chinese text.

    Args:
        language: a two-letter code of `LANGUAGE_SCRIPTS`; "en" by default. A column `language` overrides it row by
            row; a row where that is None keeps `language`.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: the language is unknown.
    """

    language: str = "en"
    name: str = "language_consistency"

    def __post_init__(self) -> None:
        self._scripts(self.language)

    def _scripts(self, language: str) -> tuple[str, ...]:
        if language not in LANGUAGE_SCRIPTS:
            raise ValueError(
                f"{self.name}: language must be one of {', '.join(sorted(LANGUAGE_SCRIPTS))}, not {language!r}"
                f"{did_you_mean(language, LANGUAGE_SCRIPTS) or '.'}"
            )
        return LANGUAGE_SCRIPTS[language]

    def __call__(
        self, completions: Sequence[Completion], language: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[float]:
        """Return one reward per completion; see the class."""
        languages = [None] * len(completions) if language is None else language
        return [
            script_share(completion_text(completion), self._scripts(own or self.language))
            for completion, own in zip(completions, languages, strict=True)
        ]


language_consistency = LanguageConsistency()
