"""Every Python snippet of the mission documents runs with only its import line changed."""

import pytest

from tests.gym import snippets_formulas, snippets_trainers
from tests.gym.catalogue import CATALOGUE, MISSION, SNIPPETS, blocks, stored
from tests.gym.stage import Stage

assert snippets_formulas and snippets_trainers, "they fill the catalogue"
ITEMS = sorted(CATALOGUE, key=lambda item: item.name)


def test_every_stored_snippet_is_listed_once():
    assert [item.name for item in ITEMS] == sorted(path.stem for path in SNIPPETS.glob("*.txt"))
    assert all(item.fixture for item in ITEMS)


@pytest.mark.skipif(
    not MISSION.is_dir(), reason="../shared/mission is not here; the stored snippets are run all the same"
)
def test_stored_snippets_are_those_of_the_documents():
    found = {
        f"{path.name[:3]}_{line:03d}": text
        for path in sorted(MISSION.glob("*.txt"))
        for line, text in blocks(path).items()
    }
    assert found == {item.name: stored(item.name) for item in ITEMS}


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_snippet(item, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item.run(Stage(item.name, tmp_path))
