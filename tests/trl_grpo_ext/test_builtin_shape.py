"""Format, length, repetition, JSON, overlap and language rewards: equations, hostile input, parity with TRL."""

import importlib
import json
import math
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext import check_reward_columns, gsm8k_number, import_trl
from trl_grpo_ext._compat import trl_version
from trl_grpo_ext.rewards.formatting import TagFormat, tag_format
from trl_grpo_ext.rewards.language import LanguageConsistency, language_consistency
from trl_grpo_ext.rewards.lengths import CosineLength, RepetitionPenalty, SoftOverlong, repetition_penalty
from trl_grpo_ext.rewards.overlap import RougeL, lcs_length, rouge_l
from trl_grpo_ext.rewards.structured import JsonSchema, json_schema

IDS = st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module", autouse=True)
def trl_rewards():
    """Imported once, before hypothesis measures the time of an example."""
    import_trl()
    return importlib.import_module("trl.rewards")


@pytest.mark.parametrize(
    ("options", "text", "reward"),
    [
        ({}, "<think>a</think>\n<answer>b</answer>", 1.0),
        ({}, "<think></think><answer></answer>", 0.0),
        ({}, "<think> \n</think><answer>b</answer>", 0.0),
        ({}, "<think>\u200b</think><answer>b</answer>", 0.0),
        ({}, "<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ({}, "<answer>b</answer><think>a</think>", 0.0),
        ({}, "<think>a<answer>b</answer></think>", 0.0),
        ({}, "<think>a</think><answer>b", 0.0),
        ({}, "</think>a<think><answer>b</answer>", 0.0),
        ({}, "<think>a</think><answer>b</answer> bye", 0.0),
        ({}, "so <think>a</think><answer>b</answer>", 0.0),
        ({}, "<think>a</think>so<answer>b</answer>", 0.0),
        ({"allow_outside": True}, "so <think>a</think>so<answer>b</answer> bye", 1.0),
        ({"allow_outside": True}, "so <think></think>so<answer>b</answer> bye", 0.0),
        ({"tags": ("think",), "allow_outside": True}, "<think>a</think> b", 1.0),
        ({"opened_by_prompt": True}, "a</think><answer>b</answer>", 1.0),
        ({"opened_by_prompt": True}, "<think>a</think><answer>b</answer>", 0.0),
        ({"tags": ["x"]}, "<x>1</x>", 1.0),
    ],
)
def test_tag_format(options, text, reward):
    assert TagFormat(**options)([text]) == [reward]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " "]), max_size=8))
def test_tag_format_is_the_pattern(parts):
    words = [part for part in parts if part != " "]
    tags = [word for word in words if word != "a"]
    runs = "".join(word if word == "a" else f" {word} " for word in words)
    ordered = tags == ["<think>", "</think>", "<answer>", "</answer>"]
    filled = ordered and all(set(run) == {"a"} for run in (runs.split()[1], runs.split()[-2]))
    reward = tag_format(["".join(parts)])
    assert reward == [float(bool(filled and runs.split()[0] == tags[0] and len(runs.split()) == 6))]


@pytest.mark.parametrize("tags", [(), "think", ("a", "a"), ("<a>",), ("a b",), (1,)])
def test_bad_tags_are_refused(tags):
    with pytest.raises(ValueError, match="TagFormat: tags must be a list of different tag names"):
        TagFormat(tags=tags)


@settings(deadline=None)
@given(IDS, st.integers(1, 20), st.integers(0, 20))
def test_soft_overlong_equals_trl(ids, longest, cache):
    if cache > longest:
        with pytest.raises(ValueError, match="cache_length must not exceed max_length"):
            SoftOverlong(max_length=longest, cache_length=cache)
        return
    from trl.rewards import get_soft_overlong_punishment

    rewards = SoftOverlong(max_length=longest, cache_length=cache)(completion_ids=ids, completions=[""] * len(ids))
    assert rewards == pytest.approx(get_soft_overlong_punishment(longest, cache)(ids))
    assert all(-1 <= reward <= 0 for reward in rewards)


def test_soft_overlong_by_hand():
    lengths = [80, 81, 90, 100, 101]
    rewards = SoftOverlong(max_length=100, cache_length=20)(completion_ids=[[1] * length for length in lengths])
    assert rewards == pytest.approx([0, -0.05, -0.5, -1, -1])


@settings(deadline=None)
@given(IDS, st.integers(1, 4))
def test_repetition_penalty_equals_trl(ids, size):
    rewards = RepetitionPenalty(ngram_size=size, max_penalty=-0.5)(completion_ids=ids)
    assert all(-0.5 <= reward <= 0 for reward in rewards)
    if trl_version() >= (1, 0):
        from trl.rewards import get_repetition_penalty_reward

        assert rewards == get_repetition_penalty_reward(size, -0.5)(ids)


def test_repetition_penalty_by_hand():
    # Tri-grams of five equal tokens: three, one unique.
    assert repetition_penalty(completion_ids=[[5] * 5, [1, 2, 3, 4], [1, 2]]) == pytest.approx([-2 / 3, 0, 0])


def test_cosine_length_by_hand():
    reward = CosineLength(correctness=gsm8k_number, max_length=100)
    texts, lengths = ["18", "18", "18", "18", "7", "7", "7"], [0, 50, 100, 200, 0, 50, 100]
    ids = [[1] * length for length in lengths]
    rewards = reward(completions=texts, completion_ids=ids, solution=["18"] * 7, prompts=["p"] * 7)
    assert rewards == pytest.approx([1, 0.75, 0.5, 0.5, -1, -0.75, -0.5])


def test_cosine_length_with_the_papers_values():
    reward = CosineLength(
        correctness=gsm8k_number,
        max_length=100,
        min_value_wrong=-10,
        max_value_wrong=0,
        min_value_correct=1,
        max_value_correct=2,
        exceeded=-10,
    )
    ids = [[1] * length for length in (25, 25, 100, 100)]
    rewards = reward(completions=["18", "7"] * 2, completion_ids=ids, solution=["18"] * 4)
    quarter = math.cos(math.pi / 4)
    assert rewards == pytest.approx([1.5 + 0.5 * quarter, -5 - 5 * quarter, -10, -10])


def test_cosine_length_equals_trl():
    if trl_version() < (1, 0):
        pytest.skip("TRL 0.24 has no get_cosine_scaled_reward")
    pytest.importorskip("math_verify")
    from trl.rewards import get_cosine_scaled_reward

    golds, ids = ["18"] * 6, [[1] * length for length in (0, 9, 20, 0, 9, 25)]
    texts = ["\\boxed{18}"] * 3 + ["\\boxed{7}"] * 3
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    ours = CosineLength(correctness=gsm8k_number, max_length=20)
    theirs = get_cosine_scaled_reward(20)(messages, golds, ids)
    assert ours(completions=messages, completion_ids=ids, solution=golds) == pytest.approx(theirs)


def _undecided(completions, **kwargs):
    return [None for _ in completions]


async def _asynchronous(completions, **kwargs):
    return [1.0 for _ in completions]


def test_cosine_length_and_its_correctness():
    reward = CosineLength(correctness=_undecided, max_length=10)
    assert reward(completions=["a"], completion_ids=[[1]]) == [None]
    assert pickle.loads(pickle.dumps(reward)) == reward
    check_reward_columns(CosineLength(correctness=gsm8k_number, max_length=10), ["prompt", "solution"])
    with pytest.raises(ValueError, match="'solution'"):
        check_reward_columns(CosineLength(correctness=gsm8k_number, max_length=10), ["prompt", "answer"])
    for wrong in (_asynchronous, "gsm8k_number"):
        with pytest.raises(ValueError, match="correctness must be a reward function without async"):
            CosineLength(correctness=wrong, max_length=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftOverlong(max_length=0, cache_length=0), "max_length must be a whole number of at least 1, not 0"),
        (lambda: SoftOverlong(max_length=9, cache_length=-1), "cache_length must be a whole number of at least 0"),
        (lambda: RepetitionPenalty(ngram_size=0), "ngram_size must be a whole number of at least 1"),
        (lambda: RepetitionPenalty(max_penalty=1), "max_penalty must not be positive, not 1"),
        (lambda: CosineLength(correctness=gsm8k_number, max_length=1.5), "max_length must be a whole number"),
        (lambda: CosineLength(correctness=gsm8k_number, max_length=1, exceeded=math.nan), "exceeded must be a finite"),
        (lambda: CosineLength(correctness=gsm8k_number, max_length=1, threshold=None), "threshold must be a finite"),
        (lambda: RougeL(max_words=0), "max_words must be a whole number"),
        (lambda: JsonSchema(max_characters=0), "max_characters must be a whole number"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


AGE = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("text", "any_json", "age"),
    [
        ('{"age": 3}', 1.0, 1.0),
        ('Here:\n```json\n{"age": 3}\n```\nDone.', 1.0, 1.0),
        ('{"age": "3"}', 1.0, 0.0),
        ("{}", 1.0, 0.0),
        ('{"age": 3', 0.0, 0.0),
        ('It is {"age": 3}', 0.0, 0.0),
        ("{'age': 3}", 0.0, 0.0),
        ('{"age": NaN}', 0.0, 0.0),
        ("", 0.0, 0.0),
        ("[" * 10_000 + "]" * 10_000, 0.0, 0.0),
        ("9" * 10_000, 0.0, 0.0),
        ('{"age": 3}' + " " * 20_000, 0.0, 0.0),
    ],
)
def test_json_schema(text, any_json, age):
    assert json_schema([text]) == [any_json]
    assert JsonSchema(schema=AGE)([text]) == [age]
    assert json_schema([text, text], json_schema=[json.dumps(AGE), None]) == [age, any_json]


@settings(deadline=None)
@given(JSON_VALUES, JSON_VALUES)
def test_json_values_are_recognised(first, second):
    text = json.dumps(first)
    assert JsonSchema(schema={"const": first})([text]) == [1.0]
    unique = JsonSchema(schema={"uniqueItems": True})
    assert unique([json.dumps([first, second])]) == JsonSchema(schema={"not": {"const": first}})([json.dumps(second)])


@settings(deadline=None)
@given(st.text(max_size=100) | st.text(alphabet='{}[]",:0123456789e.-`\n', max_size=100))
def test_any_text_is_parsed_as_json_or_not(text):
    assert JsonSchema(schema=AGE)([text])[0] in (0.0, 1.0)


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(a+)+$"},
        {"properties": {"a": {"patternProperties": {"(a+)+$": {}}}}},
        {"allOf": [{"$ref": "#"}]},
    ],
)
def test_unbounded_keywords_of_the_data_are_refused(schema):
    with pytest.raises(
        ValueError, match=r"Column 'json_schema' in row 0 uses .* run time is not bounded.*trust_column"
    ):
        json_schema(['"a"'], json_schema=[schema])
    assert JsonSchema(trust_column=True)(['"aaa"'], json_schema=[schema])[0] in (0.0, 1.0)


def test_schemas_that_can_not_be_used_are_refused():
    with pytest.raises(ValueError, match=r"refers to 'http://localhost/x'; only references within"):
        JsonSchema(schema={"$ref": "http://localhost/x"})
    with pytest.raises(ValueError, match="JsonSchema: schema is not a valid JSON Schema"):
        JsonSchema(schema={"type": "integr"})
    with pytest.raises(ValueError, match="Column 'json_schema' in row 0 must be a mapping or its JSON text"):
        json_schema(["1"], json_schema=["{"])


def test_unique_items_are_those_of_json():
    unique = JsonSchema(schema={"uniqueItems": True})
    assert unique(["[1, true]", "[0, false, null]", "[1, 1.0]", '[{"a": [1]}, {"a": [1]}]']) == [1.0, 1.0, 0.0, 0.0]


def test_unique_items_take_linear_time():
    items = json.dumps([{"a": number} for number in range(1_400)])
    start = time.process_time()
    assert JsonSchema(schema={"uniqueItems": True})([items]) == [1.0]
    assert time.process_time() - start < 0.5


def _slow_lcs(first, second):
    row = [0] * (len(second) + 1)
    for a in first:
        row = _next_row(row, a, second)
    return row[-1]


def _next_row(row, a, second):
    new = [0]
    for column, b in enumerate(second):
        new.append(row[column] + 1 if a == b else max(row[column + 1], new[-1]))
    return new


WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_rouge_l_is_its_equation(first, second):
    expected = _slow_lcs(first, second)
    assert lcs_length(first, second) == expected
    total = len(first) + len(second)
    assert rouge_l([" ".join(first)], solution=[" ".join(second)]) == [2 * expected / total if total else 0.0]


def test_rouge_l_by_hand():
    # LCS "police the gunman" of 4 and 4 words.
    assert rouge_l(["police kill the gunman"], solution=["Police: killed THE gunman!"]) == [0.75]
    assert rouge_l(["我喜欢猫"], solution=["我喜欢狗"]) == [0.75]
    assert RougeL(max_words=1)(["a b"], solution=["a c"]) == [1.0]
    with pytest.raises(ValueError, match="Column 'solution' is None in row 0"):
        rouge_l(["a"], solution=[None])


def test_rouge_l_of_long_texts_is_fast():
    text = " ".join(map(str, range(100_000)))
    start = time.process_time()
    assert rouge_l([text], solution=[text]) == [1.0]
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("language", "text", "share"),
    [
        ("en", "Hello, world 42!", 1.0),
        ("en", "ab\u4f60\u597d", 0.5),
        ("zh", "\u4f60\u597d", 1.0),
        ("zh", "\\frac{\u4f60}{\u597d}", 1.0),
        ("ja", "\u65e5\u672c\u306e\u30d3\u30fc\u30eb", 1.0),
        ("ko", "\ud55c\uad6d\uc5b4", 1.0),
        ("ru", "\u0434\u0430 ok", 0.5),
        ("en", "\uff21\uff42", 1.0),
        ("en", "42", 0.0),
        ("en", "", 0.0),
    ],
)
def test_language_consistency(language, text, share):
    assert LanguageConsistency(language=language)([text]) == [share]
    assert language_consistency([text, "ok"], language=[language, None]) == [share, 1.0]


@settings(deadline=None)
@given(st.text(max_size=100))
def test_language_share_is_a_share(text):
    assert 0 <= language_consistency([text])[0] <= 1


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"language must be one of ar, .*, not 'english'"):
        LanguageConsistency(language="english")
    with pytest.raises(ValueError, match="not 'xx'"):
        language_consistency(["a"], language=["xx"])


TEXT_REWARDS = [tag_format, json_schema, JsonSchema(schema=AGE), rouge_l, language_consistency]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_message_completions_count_like_text(text):
    message = [{"role": "assistant", "content": text}]
    for reward in TEXT_REWARDS:
        assert reward([message], solution=["a"]) == reward([text], solution=["a"])
        assert pickle.loads(pickle.dumps(reward)) == reward
