"""README and docs: nothing on them goes untested without a reason, every link leads somewhere, the index has every page."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.docs.pages import BLOCK, BLOCKS, NOT_RUN, REPOSITORY, RUN, commands, pages

NAMES = [str(path.relative_to(REPOSITORY)) for path in pages()]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_run_by_a_test(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(BLOCK.findall(text)), "a block does not end, or is indented"
    found = Counter(language for language, _ in BLOCK.findall(text) if language != "bash")
    listed = BLOCKS.get(name, {})
    assert dict(found) == {language: count for language, (count, _) in listed.items()}
    stem = name.removeprefix("docs/").removesuffix(".md")
    for _, test in listed.values():
        assert stem in (REPOSITORY / test).read_text(encoding="utf-8"), f"{test} does not name {stem}"


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    found = [command for name in NAMES for command in commands(name)]
    for command in found:
        matching = [start for start in (*RUN, *NOT_RUN) if command.startswith(start)]
        assert len(matching) == 1, f"{command!r} is matched by {matching}"
    for start in (*RUN, *NOT_RUN):
        assert any(command.startswith(start) for command in found), f"{start!r} is on no page any more"
    for test, word in RUN.values():
        assert word in (REPOSITORY / test).read_text(encoding="utf-8"), f"{word} is not in {test}"
    assert all(len(reason.split()) > 5 for reason in NOT_RUN.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = REPOSITORY / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} leads nowhere"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_options_in_grpo_config_exist() -> None:
    from trl_grpo_ext import ExtendedGRPOConfig

    found = {
        option
        for name in NAMES
        for mapping in re.findall(r"grpo_config: \{([^}]*)\}", (REPOSITORY / name).read_text(encoding="utf-8"))
        for option in re.findall(r"(\w+):(?!\w)", mapping)
    }
    assert "dynamic_sampling_rounds" in found and found <= ExtendedGRPOConfig.__dataclass_fields__.keys()


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")))
    assert linked == {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
