"""`grpo-ext experiences` as a user runs it."""

import json
import subprocess
import sys

import pytest

from trl_grpo_ext.cli.experiences import main
from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson, RolloutGroup


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "experiences.db"
    with ExperienceLibrary(path) as library:
        library.add_rollout_groups([RolloutGroup("count the apples", list("abcd"), [1, 0, 0, 0])], step=1)
        library.add(Lesson("Trains: add the speeds."))
    return path


@pytest.fixture
def run(path, capsys):
    def command(name, *arguments):
        status = main([name, str(path), *map(str, arguments)])
        return status, capsys.readouterr()

    return command


def lines(run, *arguments):
    status, captured = run(*arguments)
    assert (status, captured.err) == (0, "")
    return captured.out.splitlines()


def test_stats_are_the_guides_summary(run):
    assert lines(run, "stats")[:4] == [
        "GRPO Stats:",
        "Total rollouts: 4",
        "Stored: 1 (25.0% of rollouts)",
        "Pruned: 0",
    ]
    figures = json.loads(lines(run, "stats", "--json")[0])
    assert (figures["storage_efficiency"], figures["retention_rate"], figures["lessons"]) == (0.25, 1.0, 1)


def test_coverage_list_and_search(run):
    assert lines(run, "coverage")[1].split()[:4] == ["1", "4", "0.250", "1.000"]
    assert [row.split()[1] for row in lines(run, "list")] == ["+0.750", "lesson"]
    assert len(lines(run, "list", "--limit", 1)) == 1
    assert [json.loads(row)["text"] for row in lines(run, "search", "fast trains", "--json")] == [
        "Trains: add the speeds."
    ]
    assert json.loads(lines(run, "search", "apples", "--json")[0])["response"] == "a"


def test_add_tag_and_filter(run):
    (name,) = lines(run, "add", "--lesson", "New one.", "--metadata", "domain=web", "level=2")
    assert json.loads(lines(run, "list", "--where", "level=2", "--json")[0])["metadata"] == {
        "domain": "web",
        "level": 2,
    }
    lines(run, "tag", "level=null", "names=x", "--ids", name)
    assert lines(run, "list", "--where", "level=2") == []
    lines(run, "add", "--prompt", "p", "--response", "r", "--advantage", "2")
    assert len(lines(run, "list", "--kind", "episode")) == 2


def test_history_diff_and_rollback(run, path):
    with ExperienceLibrary(path) as library:
        version = library.version
    lines(run, "add", "--lesson", "Wrong.")
    assert lines(run, "diff", version)[0].startswith("+ ")
    assert "Wrong." in lines(run, "diff", version)[0]
    lines(run, "prune", "--max-size", 0)
    assert lines(run, "history")[1].endswith("prune")
    assert lines(run, "rollback", version) == [f"version {version + 3} is what version {version} was"]
    assert lines(run, "diff", version) == []
    assert "(step 1)" in "\n".join(lines(run, "history"))


@pytest.mark.parametrize("name", ["library", "episodes", "lessons"])
def test_export_and_import(run, tmp_path, capsys, name):
    written = {"library": 2, "episodes": 1, "lessons": 1}[name]
    lines(run, "export", tmp_path / "out", "--format", name)
    assert main(["import", str(tmp_path / "new.db"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{written} records read, {written} of them new, 0 pruned by age or limits\n"


def test_snapshot_and_merge(run, tmp_path, capsys):
    lines(run, "export", tmp_path / "copy.db", "--format", "snapshot")
    with ExperienceLibrary(tmp_path / "copy.db") as library:
        library.add(Episode("elsewhere", "r", 1.0))
    assert lines(run, "merge", tmp_path / "copy.db") == ["1 records were new"]
    assert lines(run, "merge", tmp_path / "copy.db") == ["0 records were new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tag", "a=b", "--ids", "none"], "holds no record 'none'"),
        (["rollback", "99"], "versions are 0 to"),
        (["diff", "99"], "versions are 0 to"),
        (["prune", "--max-size", "-1"], "must not be negative"),
        (["import", "nothing.json"], "nothing.json"),
        (["merge", "nothing.db"], "there is no experience library"),
        (["export", "no/such/folder/x.json"], "no/such/folder"),
        (["add", "--lesson", " "], "is empty"),
    ],
)
def test_refusals_are_one_line(run, arguments, message):
    status, captured = run(*arguments)
    assert status == 1
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_merging_a_library_with_itself_is_refused(run, path):
    assert run("merge", path)[0] == 1


@pytest.mark.parametrize("arguments", [["add"], ["add", "--prompt", "p"], ["add", "--lesson", "l", "--prompt", "p"]])
def test_incomplete_additions_are_usage_errors(run, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", ["stats", "list", "prune"])
def test_looking_at_nothing_makes_no_file(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "none.db")]) == 1
    assert "there is no experience library" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_command_needs_neither_torch_nor_trl(path, subprocess_environment):
    code = f"""
import sys
from trl_grpo_ext.cli.experiences import main
status = main(["stats", {str(path)!r}])
sys.exit(status or bool({{"torch", "trl", "transformers", "numpy"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], env=subprocess_environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("GRPO Stats:")
