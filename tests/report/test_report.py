"""`grpo-ext report` over runs of any size: one file, offline, nothing of a completion is taken for HTML."""

import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("plotly", reason="needs plotly (the extra report)")

from trl_grpo_ext.cli.report import main
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.report.charts import intervals, matching, panels, series, shown_figures
from trl_grpo_ext.report.groups import changes, reward_of, sampled_groups, score_of, spaced
from trl_grpo_ext.report.page_parts import changes_part
from trl_grpo_ext.report.run_files import load_run

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;<!--'


def make_run(folder, steps=12, groups=4, size=4, length=40, reward=lambda step, group, place: float(place < 2)):
    folder.mkdir(parents=True)
    history = []
    for step in range(1, steps + 1):
        history.append(
            {"step": step, "loss": 0.0, "reward": step / steps, "rewards/a/mean": 0.5, "rewards/b/mean": float("nan")}
            | {"kl": 0.01 * step, "entropy": 0.5, "completions/mean_length": 30.0, "frac_reward_zero_std": 0.2}
        )
        if step % 4 == 0:
            history.append({"step": step, "eval_m/avg@4": 0.5, "eval_m/avg@4_low": 0.4, "eval_m/avg@4_high": 0.6})
    state = {"log_history": history, "global_step": steps, "max_steps": steps}
    state |= {"best_model_checkpoint": "out/checkpoint-4", "best_metric": 0.5}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    with open(folder / "completions.jsonl", "w") as file:
        for step in range(1, steps + 1):
            for group in range(groups):
                for place in range(size):
                    value = reward(step, group, place)
                    row = {"step": step, "prompt": f"question {group} {HOSTILE}", "completion": "x" * length + HOSTILE}
                    row |= {"solution": "7", "rewards": {"a": value}, "reward": value, "advantage": value - 0.5}
                    file.write(json.dumps(row) + "\n")
        file.write('{"step": 13, "prom')
    return folder


class Page(HTMLParser):
    """The elements of a page, with the text inside scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._open = (dict(attributes).get("id"), [])

    def handle_data(self, data):
        if self._open is not None:
            self._open[1].append(data)

    def handle_endtag(self, tag):
        if tag == "script" and self._open is not None:
            self.scripts.append((self._open[0], "".join(self._open[1])))
            self._open = None


@pytest.fixture
def page(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "health.jsonl").write_text(
        json.dumps({"step": 9, "rule": "kl_divergence", "seen": "<b>", "change": "Stop."})
    )
    (run / "README.md").write_text(
        "### Framework versions\n\n- TRL: 0.24.0\n- Pytorch 2.12.1\n\n## More\n- Not: 1.0\n"
    )
    (run / "all_results.json").write_text('{"train_loss": 0.1}')
    make_run(tmp_path / "control")
    assert main([str(run), "--control", str(tmp_path / "control")]) == 0, capsys.readouterr().err
    assert "report.html" in capsys.readouterr().out
    return (run / "report.html").read_text()


def test_the_page_is_whole_and_loads_nothing(page):
    found = Page(page)
    for tag, attributes in found.tags:
        assert not ({"src", "onerror", "onclick"} & set(attributes)), (tag, attributes)
        assert tag != "link" or attributes["href"] == "data:,"
    assert "default-src 'none'" in page and "connect-src" not in page
    assert {"step", "group-number", "earlier", "later"} <= {attributes.get("id") for _, attributes in found.tags}
    assert sum(tag == "h3" for tag, _ in found.tags) >= 7 and "kl_divergence" in page and "&lt;b&gt;" in page
    assert "2.12.1" in page and "Not" not in re.findall(r"<td>(\w+)</td>", page)
    assert "12 of 12 steps" in page and "checkpoint-4" in page and "dotted: control run control" in page


def test_completions_are_data_and_never_html(page):
    assert HOSTILE not in page and "<script>alert" not in page and "<img" not in page
    (data,) = (json.loads(text) for name, text in Page(page).scripts if name == "groups-data")
    assert [item["step"] for item in data["steps"]] == list(range(1, 13)) and data["all_steps"] == 12
    group = data["steps"][0]["groups"][0]
    assert group["prompt"].endswith(HOSTILE) and group["completions"][0]["text"].endswith(HOSTILE)
    assert [item["advantage"] for item in group["completions"]] == [0.5, 0.5, -0.5, -0.5]
    assert data["steps"][0]["of"] == 4 and len(data["steps"][0]["groups"]) == 3


def test_a_run_of_a_thousand_steps_stays_below_10_mb(tmp_path):
    run = make_run(tmp_path / "run", steps=1000, groups=2, size=8, length=1500)
    assert main([str(run)]) == 0
    assert (run / "report.html").stat().st_size < 10_000_000
    (data,) = (
        json.loads(text) for name, text in Page((run / "report.html").read_text()).scripts if name == "groups-data"
    )
    steps = [item["step"] for item in data["steps"]]
    assert steps[0] == 1 and steps[-1] == 1000 and len(steps) >= 10 and data["all_steps"] == 1000


def test_a_budget_is_kept(tmp_path):
    path = make_run(tmp_path / "run", steps=30) / "completions.jsonl"
    for budget in (200_000, 20_000, 3_000, 10):
        assert len(json.dumps(sampled_groups(path, budget))) <= max(budget, 40)


def test_the_widest_groups_are_shown(tmp_path):
    path = (
        make_run(tmp_path / "run", reward=lambda step, group, place: float(group == 2 and place == 1))
        / "completions.jsonl"
    )
    shown = sampled_groups(path, 10**6)["steps"][0]["groups"]
    assert shown[0]["prompt"].startswith("question 2")


def test_what_changed_verdict():
    rows = [
        {"step": step, "prompt": prompt, "reward": reward}
        for step, prompt, reward in (
            *((1, "up", 0.0), (1, "up", 1.0), (2, "up", 0.0), (3, "up", 1.0), (3, "up", 1.0)),
            *(
                (1, "down", 1.0),
                (3, "down", 0.0),
                (1, "same", 1.0),
                (2, "same", 1.0),
                (2, "once", 1.0),
                (3, "none", None),
            ),
        )
    ]
    found = changes(rows, reward_of)
    assert (found["better"], found["worse"], found["same"]) == (1, 1, 1)
    assert [(item["prompt"], item["before"], item["after"], item["last"]) for item in found["largest"]] == [
        ("down", 1.0, 0.0, 3),
        ("up", 0.5, 1.0, 3),
    ]


def test_of_many_figures_those_that_can_be_told_apart_are_drawn():
    names = [f"eval_m/{figure}" for figure in ("avg@16", "pass@1", "pass@16", "pass@2", "pass^16", "maj@2", "maj@16")]
    entries = [{"step": 1, **{f"{name}{end}": 0.5 for name in names for end in ("", "_low", "_high")}}]
    (drawn,) = panels(entries).values()
    assert [line.name for line in drawn.data if line.name] == ["eval_m/avg@16", "eval_m/pass@16", "eval_m/maj@16"]
    assert shown_figures(["eval_m/other"]) == ["eval_m/other"]


def test_a_table_without_rows_is_not_shown():
    rows = [{"step": step, "prompt": "p", "reward": 1.0} for step in (1, 2)]
    part = changes_part("Changes", changes(rows, reward_of))
    assert "the same: 1" in part and "<table>" not in part and "largest" not in part


def test_two_evaluations_of_one_step_are_told_apart():
    rows = [
        {"step": step, "evaluation": number, "prompt": "p", "scores": {"m": score}}
        for number, step, score in ((1, 4, 1.0), (2, 8, 0.0), (2, 8, 0.5), (3, 8, 0.75))
    ]
    (found,) = changes(rows, score_of)["largest"]
    assert (found["first"], found["last"], found["before"], found["after"]) == (4, 8, 1.0, 0.75)


def test_curves_are_the_log():
    history = [{"step": step, "reward": step / 2, "rewards/a/mean": 1.0, "kl": float("nan")} for step in (1, 2, 3)]
    found = panels(history, [{"step": 1, "reward": 0.1}])
    assert list(found) == ["Reward"]
    lines = {line.name: (list(line.x), list(line.y)) for line in found["Reward"].data}
    assert lines["reward"] == ([1, 2, 3], [0.5, 1.0, 1.5]) and lines["reward (control)"] == ([1], [0.1])
    assert "rewards/a/mean" in lines and "kl" not in series(history)
    assert matching(["rewards/a/mean", "rewards/a/std", "reward"], ("reward", "rewards/*/mean")) == [
        "reward",
        "rewards/a/mean",
    ]
    assert intervals(["m", "m_low", "m_high", "n", "n_low"]) == ["m"]


def test_spaced():
    assert spaced(range(5), 9) == [0, 1, 2, 3, 4] and spaced(range(100), 3) == [0, 50, 99] and spaced([1, 2], 1) == [2]


def test_the_last_checkpoint_does_where_the_run_was_killed(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"step": step, "reward": 0.5}], "global_step": step}
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (run / "trainer_state.json").unlink()
    assert load_run(run).state["global_step"] == 10 and main([str(run)]) == 0


def test_experiences_learned_and_used(tmp_path):
    run = make_run(tmp_path / "run")
    with ExperienceLibrary(tmp_path / "lessons.db") as library:
        used, *_ = library.add(Lesson(f"Add first. {HOSTILE}"))
        library.add(Lesson("Never used."))
        library.record_usage([(used, 0.25), (used, 0.75)])
    assert main([str(run), "--experiences", str(tmp_path / "lessons.db")]) == 0
    page = (run / "report.html").read_text()
    assert "<td>2</td><td>+0.500</td>" in page and page.index("Add first.") < page.index("Never used.")
    assert HOSTILE not in page and "Versions of the experience library" in page
    # Without its name it is that of the last checkpoint.
    assert main([str(run)]) == 0 and "Add first." not in (run / "report.html").read_text()
    for step, text in ((2, "Of step two."), (10, "Of step ten.")):
        (run / f"checkpoint-{step}").mkdir()
        with ExperienceLibrary(run / f"checkpoint-{step}" / "experiences.db") as library:
            library.add(Lesson(text))
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Of step ten." in page and "Of step two." not in page


def test_bad_input_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "made")
    assert main([str(run), "--experiences", str(tmp_path / "none.db")]) == 1 and "none.db" in capsys.readouterr().err
    for folder, message in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no trainer_state.json")):
        assert main([str(folder)]) == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
