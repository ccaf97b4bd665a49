"""Every fuzz target, shortly and with one seed; `make fuzz` runs them for longer with new ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import deltas
from tests.fuzz.catalogue import all_targets

TARGETS = {target.name: target for target in all_targets()}
# Those that write folders cost some 10 ms each.
FEWER = {
    "train-free file": 25,
    "delta files": 20,
    "dataset rows": 25,
    "library snapshot": 25,
    "library import": 25,
    "YAML keys": 25,
}


@pytest.fixture(scope="module", autouse=True)
def without_leftovers() -> Iterator[None]:
    yield
    deltas.forget()


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors(name: str) -> None:
    assert TARGETS[name].run(FEWER.get(name, 40), number=9) >= 20
