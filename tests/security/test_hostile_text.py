"""What a model or a dataset says reaches no shell, SQL, path, template engine, page or terminal as anything but text."""

from __future__ import annotations

import io
import json
import os
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.security.payloads import ALL, HTML, PATH, ROWS, SHELL, SQL, TEMPLATE, TERMINAL
from trl_grpo_ext._terminal import visible
from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]")


@pytest.fixture
def library(tmp_path: Path) -> Any:
    with ExperienceLibrary(tmp_path / "library.db") as opened:
        opened.add(Lesson("kept"), Episode("kept", "kept", 1.0))
        yield opened


def tables(library: ExperienceLibrary) -> list[str]:
    return sorted(row[0] for row in library._store.rows("SELECT name FROM sqlite_master"))


@pytest.mark.parametrize("name", ALL)
def test_the_store_takes_text_as_text(name: str, library: ExperienceLibrary, tmp_path: Path) -> None:
    """As prompt, response, lesson, metadata key and value, filter, query, id, cause of a version."""
    text, before, version = ALL[name], tables(library), library.version
    (first,) = library.add(Episode(text, text, 2.0, metadata={text: text, "domain": text}), cause=text)
    (second,) = library.add(Lesson(text, metadata={"domain": text}))
    stored = library.get(first).record
    assert isinstance(stored, Episode) and stored.prompt == stored.response == Episode(text, text, 2.0).prompt
    assert library.sample_multiple(9, where={"domain": text})[0].prompt == stored.prompt
    assert [item.id for item in library.records(where={text: text})] == [first]
    assert library.get_experiences_for_prompt(text)[0].prompt == stored.prompt
    library.retrieve_episodes(text)
    library.search_lessons(text)
    library.tag([second], **{text: text})
    for method in (library.get, library.retire):
        with pytest.raises(KeyError):
            method(text + "'")
    library.rollback(version)
    assert tables(library) == before and library.check_integrity() == []
    assert [item.text for item in library if isinstance(item, Lesson)] == ["kept"]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.text(st.sampled_from("'\"%_*();-\\\x00 a\n^{}:"), max_size=30), min_size=8, max_size=8))
def test_any_query_is_a_query(texts: list[str]) -> None:
    with ExperienceLibrary() as library:
        library.add(Episode("a b", "r", 1.0), Lesson("a b"))
        for text in texts:
            library.retrieve_episodes(text)
            library.search_lessons(text)
            assert list(library.records(where={"key": text})) == []


def test_one_row_stays_one_row(library: ExperienceLibrary, tmp_path: Path) -> None:
    """In the JSON that is exported, and in JSON Lines: no line break gets out of its string."""
    library.add(Episode(ROWS, ROWS, 2.0))
    assert library.export_file(tmp_path / "out.json", "episodes") == 2
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["prompt"] for row in rows] == ["kept", Episode(ROWS, ROWS, 2.0).prompt]


@pytest.mark.parametrize("position", ["system", "user"])
def test_lessons_are_no_templates(position: str) -> None:
    """Neither the frame around them nor the tokenizer's Jinja template reads them."""
    from tests.llamafactory_plugin.tiny import build_tokenizer
    from trl_grpo_ext.experience.injection import inject
    from trl_grpo_ext.experience.prompting import lessons_text

    lessons, frame = lessons_text([Lesson(TEMPLATE)]), "{{ 1 }} {experiences} {0}"
    injected = inject([{"role": "user", "content": TEMPLATE}], lessons, position, frame)
    text = build_tokenizer().apply_chat_template(injected, tokenize=False)
    assert text.count(TEMPLATE) == 2 and "{{ 1 }}" in text and "{0}" in text


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The report of a run in which everything that a run says is a payload."""
    pytest.importorskip("plotly", reason="needs plotly ([report])")
    from trl_grpo_ext.report import write_report

    run = tmp_path / "run"
    run.mkdir()
    history = [{"step": step, "loss": 0.0, "reward": step / 3, f"rewards/{HTML}/mean": 0.1} for step in (1, 2)]
    state = {"global_step": 2, "max_steps": 2, "log_history": history, "best_model_checkpoint": HTML, "best_metric": 1}
    (run / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    rows = [
        {
            "step": step,
            "prompt": HTML + TEMPLATE,
            "completion": HTML + TEMPLATE,
            "solution": HTML,
            "rewards": {HTML: float(place == step)},
            "reward": float(place == step),
            "advantage": 1.0 - 2 * place,
        }
        for step in (1, 2)
        for place in range(2)
    ]
    written(run / "completions.jsonl", rows)
    written(run / "health.jsonl", [{"rule": HTML, "step": HTML, "seen": HTML, "change": HTML}])
    (run / "run_settings.json").write_text(json.dumps({HTML: {HTML: HTML}}), encoding="utf-8")
    (run / "README.md").write_text(f"### Framework versions\n\n- TRL: 0.24{HTML}\n", encoding="utf-8")
    table = {HTML: ([HTML], [[HTML]])}
    return write_report(run, tables=table).read_text(encoding="utf-8")


def test_nothing_gets_out_of_its_place_in_the_page(page: str) -> None:
    assert "<script>document.title" not in page and "<img src=x" not in page
    assert page.count("planted") > 5
    # Jinja, str.format, printf and string.Template: `$title` would have become the run's name.
    assert "$title %s" in page and "__mro__" in page
    assert "default-src 'none'" in page


def test_the_page_has_no_element_but_its_own(page: str) -> None:
    """As an HTML parser sees it: no attribute and no script came from the run."""
    from html.parser import HTMLParser

    class Elements(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.scripts, self.handlers = 0, []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.scripts += tag == "script"
            self.handlers += [name for name, _ in attrs if name.startswith("on")]

    elements = Elements()
    elements.feed(page)
    template = Path(__file__).parents[2] / "trl_grpo_ext" / "report" / "page" / "page.html"
    own = string.Template(template.read_text(encoding="utf-8")).template.count("<script")
    charts = page.count('class="plotly-graph-div"')
    assert elements.handlers == [] and own <= elements.scripts <= own + 2 * charts


def test_the_terminal_is_told_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from trl_grpo_ext.cli.experiences import main
    from trl_grpo_ext.report.lines import Completion, group_lines

    shown = "\n".join(group_lines(1, TERMINAL, [Completion(TERMINAL, {"r": 1.0}, 0.5)]))
    assert "planted" in shown and not CONTROL.search(shown)
    with ExperienceLibrary(tmp_path / "library.db") as library:
        library.add(Lesson(TERMINAL), Episode(TERMINAL, TERMINAL, 1.0))
    for command in (["list"], ["coverage"], ["diff"]):
        arguments = [*command, str(tmp_path / "library.db"), *(["0"] if command == ["diff"] else [])]
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert "planted" in shown and not CONTROL.search(shown)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_visible_text_keeps_what_can_be_read(text: str) -> None:
    assert not CONTROL.search(visible(text))
    if text.isprintable():
        assert visible(text) == text or CONTROL.search(text)
    assert visible("漢字 e\u0301 \u200d\U0001f469\n\tx") == "漢字 e\u0301 \u200d\U0001f469\n\tx"


def test_a_run_full_of_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, dataset columns, lessons and what a reward logs: they are trained on, and nothing else happens."""
    from tests.security.runs import train

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    started: list[str] = []
    monkeypatch.setattr(os, "system", lambda command: started.append(command))
    stream = io.StringIO()

    def reward(completions: Any, **columns: Any) -> list[float]:
        assert columns["path"][0] == PATH and columns["shell"][0] == SHELL
        return [float(len(text)) for text in completions]

    texts = [SQL, TEMPLATE, HTML, TERMINAL]
    columns = {"path": [PATH], "shell": [SHELL]}
    train(tmp_path / "out", [reward], prompts=texts, lessons=texts, stream=stream, **columns)
    assert not CONTROL.search(stream.getvalue())
    assert started == [] and list((tmp_path / "work").iterdir()) == []
    assert not list(tmp_path.rglob("*planted*"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>document.title" not in page
    with ExperienceLibrary(tmp_path / "library.db") as library:
        assert library.lesson_count() == len(texts) and library.check_integrity() == []
