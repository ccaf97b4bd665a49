"""BM25, the lexical judge, binary grounding, and the composite of ZIP-0273."""

import math
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.label_free.bm25 import BM25, terms
from trl_grpo_ext.rewards.label_free.composite import label_free_reward
from trl_grpo_ext.rewards.label_free.grounding import FactualGroundingReward, split_claims
from trl_grpo_ext.rewards.label_free.lexical_judge import lexical_verdict
from trl_grpo_ext.rewards.label_free.self_consistency import SelfConsistencyReward

FACTS = [
    "Sea turtles lay about 110 eggs in a nest.",
    "Visitors must not touch nesting turtles.",
    "Corals live together with algae.",
]


def test_bm25_equals_its_formula():
    documents = ["red red fox", "red cat", "blue bird sings here"]
    index = BM25(documents)
    average = 9 / 3

    def score(frequency, length, holders):
        idf = math.log(1 + (3 - holders + 0.5) / (holders + 0.5))
        return idf * frequency * 2.5 / (frequency + 1.5 * (0.25 + 0.75 * length / average))

    found = index.search("a red fox, red", 5)
    assert [place for place, _ in found] == [0, 1]
    assert found[0][1] == pytest.approx(score(2, 3, 2) + score(1, 3, 1))
    assert found[1][1] == pytest.approx(score(1, 2, 2))
    assert index.search("red bird", 1)[0][0] == 2
    assert index.search("nothing of it", 3) == []


def test_terms_drop_plurals_and_stop_words():
    assert terms("The turtles of the grass, and a bus") == ["turtle", "grass", "bus"]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.text(max_size=40), st.integers(0, 5))
def test_search_is_sorted_and_short(documents, query, k):
    found = BM25(documents).search(query, k)
    assert len(found) <= k
    assert found == sorted(found, key=lambda item: -item[1])
    assert all(score > 0 for _, score in found)


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ("A sea turtle lays 110 eggs in the nest", "supported"),
        ("Sea turtles lay eggs in a nest", "supported"),
        ("Sea turtles lay 12 eggs in a nest", "contradicted"),
        ("Visitors must touch nesting turtles", "contradicted"),
        ("Visitors mustn't touch nesting turtles", "supported"),
        ("Corals do not live together with algae", "contradicted"),
        ("Corals live with 3 algae", "abstain"),
        ("Elephants never forget", "abstain"),
        ("", "abstain"),
    ],
)
def test_lexical_verdict(claim, verdict):
    assert lexical_verdict(claim, FACTS) == verdict


def test_one_contradiction_outweighs_all_support():
    reward = FactualGroundingReward(FACTS)
    good, bad, off = FACTS[2], "Visitors may touch nesting turtles!", "Hello there."
    assert reward(completions=[good, f"{good} {bad}", off, f"{off} {good}", ""]) == [1.0, 0.0, None, 1.0, None]
    assert reward.last_metrics == {
        "factual_grounding/supported": 0.4,
        "factual_grounding/contradicted": 0.2,
        "factual_grounding/abstain": 0.4,
    }
    assert FactualGroundingReward(FACTS, abstain=0.5)(completions=[off]) == [0.5]
    assert pickle.loads(pickle.dumps(reward))(completions=[good]) == [1.0]


def test_judge_sees_the_retrieved_facts_only():
    seen = []

    def judge(claim, facts):
        seen.append((claim, list(facts)))
        return "supported"

    logged = {}
    reward = FactualGroundingReward(FACTS, judge, top_k=1)
    assert reward(completions=["Turtle eggs. Zebra."], log_metric=logged.__setitem__) == [1.0]
    assert seen == [("Turtle eggs.", [FACTS[0]])]
    assert logged == reward.last_metrics
    assert FactualGroundingReward(FACTS, judge, min_score=100.0)(completions=["Turtle eggs."]) == [None]


def test_claims_are_bounded():
    start = time.perf_counter()
    assert len(split_claims("A b. " * 100_000)) == 32
    assert split_claims("- One fact.\n\n2\n* Two!  三。四") == ["One fact.", "Two!", "三", "四"]
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": []}, "at least one fact"),
        ({"corpus": "text"}, "a sequence"),
        ({"corpus": ["a", " "]}, "none of them empty"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, not 0"),
        ({"abstain": math.inf}, "abstain must be a finite number or None, not inf"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FactualGroundingReward(**{"corpus": FACTS, **settings})


def test_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match="not 'suported', did you mean 'supported'"):
        FactualGroundingReward(FACTS, lambda claim, facts: "suported")(completions=["turtle eggs"])


def test_composite_ranks_weighs_and_standardises():
    completions = [
        "3 + 4 = 7. Corals live together with algae. Answer: 7",
        "3 + 4 = 8. Answer: 7",
        "Corals do not live together with algae. Answer: 7",
        "Answer: 9",
    ]
    reward = label_free_reward(FACTS, weights={"step_validity": 0.5})
    scores = reward(completions=completions, prompts=["p"] * 4)
    # Ranks: consistency 1/3, 1/3, 1/3, -1; steps 1, -1, none, none; grounding 1, none, -1, none.
    sums = [1 / 3 + 0.5 + 1, 1 / 3 - 0.5, 1 / 3 - 1, -1]
    mean = sum(sums) / 4
    deviation = math.sqrt(sum((value - mean) ** 2 for value in sums) / 3)
    assert scores == pytest.approx([(value - mean) / deviation for value in sums])
    assert reward.last_components["factual_grounding"] == [1.0, None, 0.0, None]
    assert reward.last_metrics["label_free/step_validity/skipped"] == 0.5


def test_composite_skips_what_self_consistency_skips():
    reward = label_free_reward()
    unanimous = ["1 + 1 = 2. Answer: 2", "1 + 1 = 3. Answer: 2"]
    assert reward(completions=unanimous, prompts=["p"] * 2) == [None, None]
    kept = label_free_reward(consistency=SelfConsistencyReward(max_agreement=1.0))
    assert kept(completions=unanimous, prompts=["p"] * 2) == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_composite_watches_agreement_not_its_own_mean():
    reward = label_free_reward(weights={"step_validity": 0.0})
    reward(completions=["7", "7", "7", "8"], prompts=["p"] * 4)
    assert reward.pseudo_signal == 0.75


def test_composite_takes_extra_rewards():
    def short(completions, **kwargs):
        return [-float(len(completion)) for completion in completions]

    reward = label_free_reward(extra={"short": short}, weights={"self_consistency": 0.0, "short": 1.0})
    scores = reward(completions=["7", "is 7", "it is 9"], prompts=["p"] * 3)
    assert scores == pytest.approx([1.0, 0.0, -1.0])
    with pytest.raises(ValueError, match="name of a component"):
        label_free_reward(extra={"step_validity": short})
    with pytest.raises(ValueError, match="'step_validty' is not a component, did you mean 'step_validity'"):
        label_free_reward(weights={"step_validty": 1.0})
