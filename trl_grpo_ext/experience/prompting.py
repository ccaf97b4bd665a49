"""How chosen records stand in a prompt: the same template in learning and in serving. Pure text functions."""

from __future__ import annotations

from collections.abc import Sequence

from trl_grpo_ext.experience.records import Episode, Lesson

LESSONS_HEADER = "Lessons from earlier attempts; use those that fit:"


def lessons_text(lessons: Sequence[Lesson]) -> str:
    """Return the lessons as one block, numbered G0, G1, ... as in Training-Free GRPO (arXiv 2510.08191)."""
    if not lessons:
        return ""
    lines = [f"[G{number}]. {lesson.text}" for number, lesson in enumerate(lessons)]
    return "\n".join([LESSONS_HEADER, *lines])


def few_shot_text(episodes: Sequence[Episode]) -> str:
    """Return the episodes as worked examples: "Q: prompt", "A: response", with an empty line between two."""
    return "\n\n".join(f"Q: {episode.prompt}\nA: {episode.response}" for episode in episodes)
