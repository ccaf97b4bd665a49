import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson, SentenceSimilarity, lessons_text
from trl_grpo_ext.experience.retrieval import near_same
from trl_grpo_ext.experience.text_index import InvertedIndex, terms

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"
MATCH_SYNTAX = [
    'a" OR "b',
    "NEAR(a b, 2)",
    "terms:x",
    "a AND NOT b",
    "*",
    "^x",
    '"',
    "a*",
    "{terms}:x",
    "; DROP TABLE",
]


def words(text):
    return len(text.split())


def prompts(found):
    return [item.record.prompt for item in found]


def fill(library, *texts, **metadata):
    return library.add(*(Episode(text, "r", 1.0, metadata=metadata) for text in texts))


def test_prompts_that_share_rare_words_come_first(library):
    fill(library, "how many apples does Ann have", "how many cats does Bob have", "the area of a circle")
    assert prompts(library.retrieve_episodes("Bob buys cats and dogs"))[0] == "how many cats does Bob have"
    assert prompts(library.retrieve_episodes("circle")) == ["the area of a circle"]
    assert library.retrieve_episodes("nothing alike") == []


@pytest.mark.parametrize("query", MATCH_SYNTAX)
def test_match_syntax_in_a_prompt_is_only_text(library, query):
    fill(library, "terms a b x", *(f"{text} stored" for text in MATCH_SYNTAX))
    library.retrieve_episodes(query)
    assert library.check_integrity() == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(min_size=1, max_size=60).filter(lambda text: text.strip()))
def test_no_text_breaks_the_index(query, stored):
    with ExperienceLibrary() as library:
        fill(library, stored, "another prompt")
        found = library.retrieve_episodes(query, training=True, same_prompt=True)
        kept = stored.encode("utf-8", "replace").decode()
        assert (kept in prompts(found)) == bool(set(terms(query)) & set(terms(kept)))


WORD = st.sampled_from("red green blue cat dog bird 日本語 naïve 42 x_y".split())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(WORD, min_size=1, max_size=8), min_size=1, max_size=15), st.lists(WORD, min_size=1, max_size=4)
)
def test_both_indexes_give_the_same_scores(documents, query):
    texts = [" ".join(document) for document in documents]
    wanted = list(dict.fromkeys(terms(" ".join(query))))
    with ExperienceLibrary() as library:
        for number, text in enumerate(texts):
            library.add(Episode(f"{text} #{number}", "r", 1.0))
        if not library._store.full_text:
            pytest.skip("this SQLite has no FTS5")
        exact = dict(library._store.index.ranked(wanted))
        plain = InvertedIndex((number + 1, f"{text} #{number}") for number, text in enumerate(texts))
        assert dict(plain.ranked(wanted)) == pytest.approx(exact)
        for term in wanted:
            assert plain.frequency(term, 3) == library._store.index.frequency(term, 3)
        assert plain.newest(wanted, 4) == library._store.index.newest(wanted, 4)


def test_same_and_near_same_prompts_are_never_given_in_evaluation(library):
    question = "Natalia sold clips to 48 of her friends in April; how many clips did she sell?"
    fill(library, question, question.upper() + "!!", "  " + question, "Natalia sold 9 clips to Bob")
    assert prompts(library.retrieve_episodes(question)) == ["Natalia sold 9 clips to Bob"]
    assert len(library.retrieve_episodes(question, training=True)) == 1
    assert len(library.retrieve_episodes(question, training=True, same_prompt=True)) == 4
    with pytest.raises(ValueError, match="would give the answer away"):
        library.retrieve_episodes(question, same_prompt=True)


def test_near_same_by_runs_of_words():
    text = [f"w{place}" for place in range(40)]
    assert near_same(text, [*text[:30], *(f"x{place}" for place in range(60))]) is True
    assert near_same(text, [*text[:20], *(f"x{place}" for place in range(60))]) is False
    assert near_same(["a", "b"], ["b", "a"]) is True
    assert near_same(["what", "is", "12", "7"], ["what", "is", "12", "8"]) is False


def test_filter_comes_before_the_ranking(library):
    fill(library, *(f"apples {number}" for number in range(80)), domain="web")
    fill(library, "apples and many other words about something else", domain="math")
    assert prompts(library.retrieve_episodes("apples", where={"domain": "math"})) == [
        "apples and many other words about something else"
    ]


def test_usefulness_decides_between_equals_and_ties_go_to_the_older(library):
    names = fill(library, "one apple", "two apple", "three apple")
    assert prompts(library.retrieve_episodes("apple")) == ["one apple", "two apple", "three apple"]
    library.record_usage([(names[2], 1.0)] * 5 + [(names[0], -1.0)] * 5)
    assert prompts(library.retrieve_episodes("apple")) == ["three apple", "two apple", "one apple"]


def test_lessons_stand_in_stable_order_within_the_budget(library):
    texts = ["apples: count them", "circles: square the radius", "trains: add the speeds", "money: mind the cents"]
    names = library.add(*map(Lesson, texts))
    everything = library.retrieve_lessons("any", token_budget=100, count_tokens=words)
    assert [item.record.text for item in everything] == texts
    chosen = library.retrieve_lessons("speeds of trains, and circles", token_budget=9, count_tokens=words)
    assert [item.record.text for item in chosen] == [texts[1], texts[2]]
    library.record_usage([(names[3], 1.0)] * 50)
    chosen = library.retrieve_lessons("nothing in common", token_budget=4, count_tokens=words)
    assert [item.record.text for item in chosen] == [texts[3]]
    assert library.retrieve_lessons("any", token_budget=0, count_tokens=words) == []
    assert [item.record.text for item in library.search_lessons("trains")] == [texts[2]]


def test_budget_needs_a_way_to_count(library):
    with pytest.raises(ValueError, match="needs count_tokens"):
        library.retrieve_lessons(token_budget=5)
    with pytest.raises(ValueError, match="must not be negative"):
        library.retrieve_episodes("p", token_budget=-1, count_tokens=words)


def test_episodes_fit_their_budget(library):
    library.add(Episode("apple one", "long " * 50, 1.0), Episode("apple two", "short", 0.5))
    found = library.retrieve_episodes("an apple", token_budget=5, count_tokens=words)
    assert prompts(found) == ["apple two"]


def test_when_every_word_is_common_the_newest_are_compared(library, monkeypatch):
    monkeypatch.setattr("trl_grpo_ext.experience.text_index.MOST_PROMPTS", 3)
    fill(library, *(f"what is {number} plus {number}" for number in range(10)))
    assert prompts(library.retrieve_episodes("what is it"))[0] == "what is 9 plus 9"
    assert prompts(library.retrieve_episodes("what is 4"))[0] == "what is 4 plus 4"


def test_retrieval_is_a_function_of_query_and_version(library):
    fill(library, "red apple", "green apple", "blue sky")
    first = library.retrieve_episodes("an apple in the sky")
    library.retrieve_episodes("new words unseen")
    assert library.retrieve_episodes("an apple in the sky") == first
    fill(library, "unseen words")
    assert prompts(library.retrieve_episodes("new words unseen yet", count=1)) == ["unseen words"]


def test_another_writers_records_are_found(where):
    if not where:
        pytest.skip("a library in memory has one user")
    with ExperienceLibrary(**where) as one, ExperienceLibrary(**where) as other:
        one.sample_experience()
        one.retrieve_episodes("apple")
        other.add(Episode("an apple", "r", 1.0), Lesson("a lesson"))
        assert one.sample_experience().prompt == "an apple"
        assert prompts(one.retrieve_episodes("apple pie")) == ["an apple"]
        assert len(one.retrieve_lessons()) == 1


class LengthModel:
    """Texts of one length point in one direction."""

    def encode(self, texts, normalize_embeddings):
        assert normalize_embeddings
        return [[float(len(text) % 7 == axis) for axis in range(7)] for text in texts]


def test_embeddings_rank_in_place_of_words(library):
    similarity = SentenceSimilarity(LengthModel(), remember=2)
    library.add(Lesson("a" * 10), Lesson("b" * 11), Lesson("c" * 12))
    found = library.retrieve_lessons("q" * 4, token_budget=1, count_tokens=words, similarity=similarity)
    assert [item.record.text for item in found] == ["b" * 11]
    fill(library, "apple " * 5, "apple " * 6)
    assert len(library.retrieve_episodes("apple pie", similarity=similarity)) == 2


def test_embeddings_without_their_package_say_how_to_get_it():
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"trl-grpo-ext\[retrieval\]"):
            SentenceSimilarity("any/model")
    else:
        pytest.skip("sentence-transformers is installed")


def test_lessons_block_is_the_papers_numbering():
    assert lessons_text([]) == ""
    assert lessons_text([Lesson("a"), Lesson("b")]).splitlines()[1:] == ["[G0]. a", "[G1]. b"]


@pytest.mark.skipif(not GSM8K.is_file(), reason="needs ../shared/data/gsm8k")
def test_real_questions_never_get_their_own_answer():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:400]]
    with ExperienceLibrary() as library:
        library.add(*(Episode(row["question"], row["answer"], 1.0) for row in rows))
        for row in rows[:40]:
            found = library.retrieve_episodes(row["question"])
            assert found
            assert row["question"] not in prompts(found)
