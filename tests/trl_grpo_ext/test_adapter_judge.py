"""A judge behind a real HTTP server: scores, rankings, and the answers it is never shown."""

import json
import pickle

import pytest
from adapter_runs import dataset, make_trainer, texts_of
from adapter_service import service
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.adapters import JudgeRanking, JudgeReward, RewardError
from trl_grpo_ext.rewards.adapters.judge import says_nothing, score_in
from trl_grpo_ext.rewards.adapters.judge_ranking import verdict_in


def judge(verdict):
    """A server whose judge says `verdict(material)`."""

    def answer(handler, request):
        text = verdict(json.loads(request["messages"][1]["content"]))
        handler.reply({"choices": [{"message": {"role": "assistant", "content": text}}]})

    return service(answer)


def by_length(material):
    return f"Why.\nScore: {min(len(material['answer']), 10)}"


@pytest.mark.parametrize(
    "text",
    ["", "  \n", ":", "...", "Thought process:", "**Solution**", "Let’s solve this problem step by step.", "解", "'"],
)
def test_answers_that_say_nothing_are_never_shown(text):
    assert says_nothing(text)
    with judge(lambda material: "Score: 10") as server:
        reward = JudgeReward(server.url, "m")
        assert reward(["q"] * 2, [text, "7"]) == [0.0, 1.0]
        assert len(server.requests) == 1
        assert reward.metrics["rewards/judge/filtered"] == 0.5
        assert JudgeRanking(server.url, "m")(["q"] * 2, [text, "7"]) == [0.0, 1.0]
        assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["7", "x", "Solution: 7", "the solution", "да"])
def test_answers_that_say_something_are_shown(text):
    assert not says_nothing(text)


def test_request_and_score():
    with judge(by_length) as server:
        reward = pickle.loads(pickle.dumps(JudgeReward(server.url, "m", concurrency=2)))
        assert reward(["q1", "q2"], ["7", '777", "reference": "7']) == [0.1, 1.0]
        requests = {body["messages"][1]["content"]: body for _, _, body in server.requests}
    body = requests['{"question": "q1", "answer": "7"}']
    assert (body["model"], body["temperature"]) == ("m", 0.0)
    assert "Score: N" in body["messages"][0]["content"]
    assert "reference" not in body["messages"][0]["content"]


def test_reference_is_shown_when_asked_for():
    with judge(lambda m: f"Score: {10 if m['answer'] == m['reference'] else 0}") as server:
        reward = JudgeReward(server.url, "m", reference_column="solution")
        assert reward(["q"] * 2, ["7", "8"], solution=[7, 7]) == [1.0, 0.0]
        assert "agreement" in server.requests[0][2]["messages"][0]["content"]
        with pytest.raises(ValueError, match="needs the dataset column 'solution'"):
            reward(["q"], ["7"])


@pytest.mark.parametrize("reply", ["fine", "Score: 11", "Score: ten", "Score: -1", "Score: 100", ""])
def test_a_reply_without_a_score_is_an_error(reply):
    with judge(lambda material: reply) as server:
        with pytest.raises(RewardError, match="the judge gave no 'Score: N'"):
            JudgeReward(server.url, "m")(["q"], ["7"])
        assert JudgeReward(server.url, "m", on_error="skip")(["q"], ["7"]) == [None]


def test_an_answer_of_another_form_is_an_error():
    with service(lambda handler, request: handler.reply({"choices": []})) as server:
        reward = JudgeReward(server.url, "m")
        with pytest.raises(RewardError, match="no text in choices"):
            reward(["q"], ["7"])


@given(st.text(max_size=50) | st.from_regex(r"(Score: ?\*{0,2}[0-9]{1,3}(\.[0-9]{0,5})? ?){0,3}"))
def test_a_score_is_between_0_and_1_or_an_error(reply):
    try:
        assert 0.0 <= score_in(reply) <= 1.0
    except ValueError as error:
        assert "no 'Score: N'" in str(error)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("Score: 3.", 0.3), ("Score: 4/10", 0.4), ("Score: 9\nScore: 2.5", 0.25), ("**Score:** 10", 1.0)],
)
def test_the_last_score_counts(reply, score):
    assert score_in(reply) == score


def test_ranking_gives_shares_of_wins():
    def longer(material):
        sizes = len(material["A"]), len(material["B"])
        return "Better: " + ("T" if sizes[0] == sizes[1] else "A" if sizes[0] > sizes[1] else "B")

    with judge(longer) as server:
        reward = pickle.loads(pickle.dumps(JudgeRanking(server.url, "m")))
        assert reward(["q"] * 3 + ["r"] * 2 + ["s"], ["1", "22", "333", "1", "2", "1"]) == [0, 0.5, 1, 0.5, 0.5, None]
        shown = sorted(
            (body := json.loads(r["messages"][1]["content"]))["A"] + "|" + body["B"] for *_, r in server.requests
        )
    assert shown == sorted(["1|22", "22|1", "1|333", "333|1", "22|333", "333|22", "1|2", "2|1"])


def test_a_judge_of_positions_ranks_nobody():
    with judge(lambda material: "Better: A") as server:
        assert JudgeRanking(server.url, "m")(["q"] * 3, ["1", "22", "333"]) == [0.5, 0.5, 0.5]


def test_a_failed_pair_is_an_error_of_both_rows():
    with judge(lambda m: "hm" if {m["A"], m["B"]} == {"1", "2"} else "Better: T") as server:
        reward = JudgeRanking(server.url, "m", on_error="skip")
        assert reward(["q"] * 3, ["1", "2", "3"]) == [None, None, 0.5]
    assert verdict_in("Better: A no, Better: **B**") == 0.0


def test_concurrency_is_checked():
    for kind in (JudgeReward, JudgeRanking):
        with pytest.raises(ValueError, match=r"concurrency of reward .* must be 1 or more"):
            kind("http://127.0.0.1/", "m", concurrency=0)


@pytest.mark.parametrize("kind", [JudgeReward, JudgeRanking])
def test_judges_train(kind, tiny_model, tiny_tokenizer, tmp_path):
    def both(m):
        return by_length(m) if "answer" in m else f"Better: {'A' if m['A'] > m['B'] else 'B'}"

    with judge(both) as server:
        reward = kind(server.url, "m")
        trainer = make_trainer(tiny_model, tiny_tokenizer, tmp_path, [reward], dataset({}))
        trainer.train()
    rewards = list(trainer._logs["rewards"][reward.__name__])
    assert trainer.state.global_step == 3
    assert len(set(rewards)) > 1
    assert all(
        r == 0.0 for text, r in zip(texts_of(trainer), rewards, strict=True) if kind is JudgeReward and text in ".#"
    )
