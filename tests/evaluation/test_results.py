"""Scoring, figures per problem, comparisons and tables."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from trl_grpo_ext.evaluation import (
    AnswerMatch,
    SamplesError,
    compare,
    differences_table,
    estimates_table,
    evaluate,
    flexible_match,
    pass_at_k,
    score_rows,
    stored_scores,
    strict_match,
    two_by_two,
)

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


def row(problem, completion, solution="18", **more):
    return {"prompt": problem, "completion": completion, "solution": solution, **more}


ROWS = [
    row("a", "so #### 18"),
    row("a", "it is 18."),
    row("a", "#### 17"),
    row("a", "no idea"),
    row("b", "#### 1,800.0", "#### 1800"),
    row("b", "#### 1800", "#### 1800"),
    row("b", "1800 or 18", "#### 1800"),
    row("b", "#### 18", "#### 1800"),
]


def test_strict_and_lenient():
    scored = score_rows(ROWS, [strict_match, flexible_match])
    assert [item["scores"]["strict_match"] for item in scored] == [1, 0, 0, 0, 1, 1, 0, 0]
    assert [item["scores"]["flexible_match"] for item in scored] == [1, 1, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#### -03.50", "-3.5"), ("#### $1,234", "1234"), ("#### .5", "0.5"), ("#### -0.0", "0"), ("none", None)],
)
def test_one_spelling_per_number(text, answer):
    assert strict_match.extract(text) == answer


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K beside the repository")
def test_every_gold_answer_of_gsm8k_scores_1_and_the_neighbour_s_as_often_as_they_are_equal():
    (path,) = GSM8K.rglob("test.jsonl")
    golds = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    for scorer in (strict_match, flexible_match):
        assert scorer(completions=golds, solution=golds) == [1.0] * len(golds)
        neighbours = scorer(completions=golds[1:], solution=golds[:-1])
        equal = [one.split("#### ")[1] == two.split("#### ")[1] for one, two in pairwise(golds)]
        assert neighbours == [float(same) for same in equal]


def test_figures_by_hand():
    found = evaluate(score_rows(ROWS, [strict_match, flexible_match]), [strict_match, flexible_match], ks=[1, 2])
    values = found.values
    assert values["strict_match/avg@4"] == {'["a", "18"]': 0.25, '["b", "#### 1800"]': 0.5}
    assert list(values["flexible_match/pass@2"].values()) == [pass_at_k(4, 2, 2)] * 2
    assert list(values["strict_match/pass^2"].values()) == pytest.approx([0.0, 1 / 6])
    # Two of four votes for 18, one for 17, one for nothing: of six pairs three have a majority for 18, two are ties.
    assert next(iter(values["flexible_match/maj@2"].values())) == pytest.approx((1 + 2 * 0.5 + 2 * 1) / 6)
    assert found.samples == 8 and found.unscored == {}
    assert "strict_match/maj@1" in values


def test_scores_of_several_kinds():
    def half(completions, **kwargs):
        return [None if "no" in text else len(text) / 4 for text in completions]

    rows = [row("a", "xx"), row("a", "no"), row("b", "xxxx"), row("b", "x")]
    found = evaluate(score_rows(rows, [half]), [half], ks=[1])
    assert list(found.values["half/avg@2"].values()) == [0.5, 0.625] and found.unscored == {"half": 1}
    assert list(found.values["half/pass@1"].values()) == [0.0, 0.5] and "half/maj@1" not in found.values
    assert list(
        evaluate(score_rows(rows, [half]), [half], ks=[1], correct_from=0.5).values["half/pass@1"].values()
    ) == [1.0, 0.5]


def test_scorers_are_called_as_trl_calls_rewards():
    seen = {}

    def spy(prompts, completions, level, **kwargs):
        seen.update(prompts=prompts, completions=completions, level=level, others=sorted(kwargs))
        return [float("nan")] * len(prompts)

    messages = [{"role": "user", "content": "a"}]
    (scored,) = score_rows([row(messages, "b", level=3, step=7, tokens=2, advantage=1.0)], [spy])
    assert scored["scores"] == {"spy": None}
    assert seen == {
        "prompts": [messages],
        "completions": [[{"role": "assistant", "content": "b"}]],
        "level": [3],
        "others": ["solution"],
    }


def test_what_a_file_carries_can_be_used():
    assert stored_scores([row("a", "x", rewards={"r": 1.0})])[0]["scores"] == {"r": 1.0}
    with pytest.raises(SamplesError, match="name a scorer"):
        stored_scores([row("a", "x")])


def test_a_difference_is_found_and_chance_is_not():
    draws = random.Random(1)

    def run(gain):
        rows = [
            row(f"p{number}", "1" if draws.random() < chance + gain else "2", "1")
            for number, chance in enumerate([0.2, 0.7] * 40)
            for _ in range(4)
        ]
        return evaluate(score_rows(rows, [flexible_match]), [flexible_match])

    plain = run(0.0)
    same, better = compare(run(0.0), plain)["flexible_match/avg@4"], compare(run(0.2), plain)["flexible_match/avg@4"]
    assert same.low < 0 < same.high and same.p_value > 0.05
    assert better.low > 0.05 and better.p_value < 0.01 and better.better > better.worse
    assert "+0." in differences_table({"m": better}) and "| 80" in estimates_table(plain.estimates())


def cell(share):
    rows = [row(f"p{number}", "1" if number < share * 20 else "2", "1") for number in range(20)]
    return evaluate(score_rows(rows, [flexible_match]), [flexible_match])


def test_two_by_two():
    cells = {(False, False): cell(0.2), (False, True): cell(0.5), (True, False): cell(0.3), (True, True): cell(0.9)}
    lines = two_by_two(cells, "flexible_match/avg@1").splitlines()
    figures = [[part.split()[0] for part in line.strip("| ").split("|")[1:] if part.strip()] for line in lines[2:]]
    assert figures == [["0.200", "0.500", "+0.300"], ["0.300", "0.900", "+0.600"], ["+0.100", "+0.400"]]
    with pytest.raises(ValueError, match="the cell"):
        two_by_two({**cells, (True, True): evaluate(score_rows(ROWS, [strict_match]))}, "flexible_match/avg@1")


def test_bad_input_is_refused():
    with pytest.raises(SamplesError, match="no samples"):
        evaluate([])
    with pytest.raises(SamplesError, match="k=8 needs at least 8 samples"):
        evaluate(score_rows(ROWS, [strict_match]), ks=[8])
    with pytest.raises(SamplesError, match="no column 'completion'"):
        score_rows([{"prompt": "a"}], [strict_match])
    with pytest.raises(ValueError, match="gave 1 scores for 8"):
        score_rows(ROWS, [one_score])
    with pytest.raises(SamplesError, match="share no problem"):
        compare(evaluate(score_rows(ROWS[:4], [strict_match])), evaluate(score_rows(ROWS[4:], [strict_match])))
    with pytest.raises(ValueError, match="one group"):
        AnswerMatch("x", "abc")
    with pytest.raises(ValueError, match="holds no number"):
        strict_match(completions=["1"], solution=["none"])


def one_score(completions, **kwargs):
    return [1.0]
