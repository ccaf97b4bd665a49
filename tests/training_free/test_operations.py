"""What may be done to a library of lessons, and that it is done whole."""

import pytest

from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free.operations import Operation, Rules, Source, apply_operations, same_lesson, validated

UNITS, SIGN = "When units meet, convert first.", "Check the sign last."


@pytest.fixture
def library():
    library = ExperienceLibrary()
    library.add(Lesson(UNITS, 0.0), Lesson(SIGN, 0.0))
    return library


def texts(library):
    return {item.id: item.record.text for item in library.records("lesson")}


def rules(library, **more):
    return Rules(texts(library), 32, **more)


def reason(library, operation, **more):
    kept, rejected = validated([operation], rules(library, **more))
    assert len(kept) + len(rejected) == 1
    return rejected[0].reason if rejected else ""


def add(text):
    return Operation("add", text)


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (Operation("delete", "", ("nobody",)), "there is no lesson 'nobody'"),
        (Operation("update", "New words.", ("nobody",)), "there is no lesson 'nobody'"),
        (add("word " * 33), "33 words, 32 are allowed"),
        (add("w" * 400), "400 characters"),
        (add("?!"), "no text"),
        (add("when UNITS meet: convert first!"), "repeats lesson"),
    ],
)
def test_bad_operations_are_refused(library, operation, says):
    assert says in reason(library, operation)


def test_good_ones_are_not(library):
    first, second = texts(library)
    assert not reason(library, add("When lost, draw a picture."))
    assert not reason(library, Operation("update", "When units meet, convert all of them first.", (first,)))
    assert not reason(library, Operation("merge", UNITS, (second, first)))
    assert not reason(library, Operation("delete", "", (first,)))


def test_an_update_must_change_something_and_not_repeat_another(library):
    first, _ = texts(library)
    assert "changes nothing" in reason(library, Operation("update", UNITS, (first,)))
    assert "repeats lesson" in reason(library, Operation("update", SIGN, (first,)))


def test_an_earlier_wording_is_known(library):
    first, _ = texts(library)
    library.reword(first, "Something else altogether.", timestamp=1.0)
    assert "earlier wording" in reason(library, add(UNITS))


def test_what_was_harmful_stays_out(library):
    assert "harmful" in reason(library, add("Skip every check."), harmful=["skip every check"])


def test_lessons_of_other_domains_are_not_taken_over(library):
    elsewhere = {Lesson("Draw a picture.", 0.0).id: "Draw a picture."}
    assert "another domain" in reason(library, add("Draw a picture."), elsewhere=elsewhere)


@pytest.mark.parametrize(
    ("text", "answer", "leaks"),
    [
        ("For sheep, the total is 1729 in the end.", "1729", True),
        ("For sheep, the total is 17290 in the end.", "1729", False),
        ("When 7 days make a week, convert first.", "7", False),
        ("When asked about weeks, the answer is 7.", "7", True),
        ("When asked, reply Paris at once.", "Paris", True),
        ("Count and say 72 clips.", "She sold 48+24 clips.\n#### 72", False),
        ("Count; the result is 72.", "She sold 48+24 clips.\n#### 72", True),
        ("Add 1,000 in the end.", "1,000", True),
        ("Anything at all.", None, False),
        ("Anything at all.", "", False),
    ],
)
def test_answers_are_not_given_away(library, text, answer, leaks):
    found = reason(library, add(text), sources=[Source("How many?", answer)])
    assert ("gives away" in found) == leaks


def test_thirteen_words_of_a_problem_are_its_text(library):
    problem = "A farmer has some red sheep and some blue sheep and sells half of them on Monday"
    source = [Source(problem)]
    assert "13 words" in reason(library, add(" ".join(problem.split()[:13])), sources=source)
    assert not reason(library, add(" ".join(problem.split()[:12])), sources=source)


def test_deletion_wins_and_else_the_first(library):
    first, second = texts(library)
    operations = [
        Operation("update", "One thing about units.", (first,)),
        Operation("delete", "", (first,)),
        Operation("update", "Signs come at the very end.", (second,)),
        Operation("merge", "Everything in one.", (second, first)),
        add("When lost, draw a picture."),
        add("When lost, draw a picture!"),
    ]
    kept, rejected = validated(operations, rules(library))
    assert [item.kind for item in kept] == ["delete", "update", "add"]
    assert [item.operation for item in rejected] == [operations[0], operations[3], operations[5]]
    assert all(item.reason for item in rejected)


def test_a_merge_keeps_the_first_id_and_its_use(library):
    first, second = texts(library)
    library.record_usage([(first, 0.5)])
    apply_operations(library, [Operation("merge", "Units first, signs last.", (first, second))], 3)
    assert texts(library) == {first: "Units first, signs last."}
    assert (library.get(first).uses, library.get(first).record.timestamp) == (1, 3.0)


def test_a_text_may_move_from_a_merged_lesson_to_the_first(library):
    first, second = texts(library)
    apply_operations(library, [Operation("merge", SIGN, (first, second))], 1)
    assert texts(library) == {first: SIGN}


def test_operations_are_done_whole_or_not_at_all(library):
    first, _ = texts(library)
    before = texts(library)
    with pytest.raises(KeyError), library.transaction("step", 1):
        apply_operations(library, [add("When lost, draw."), Operation("delete", "", ("nobody",))], 1)
    assert texts(library) == before
    with library.transaction("step", 1):
        apply_operations(library, [add("When lost, draw."), Operation("delete", "", (first,))], 1, {"domain": "a"})
    assert list(texts(library).values()) == [SIGN, "When lost, draw."]
    added = list(library.records("lesson", {"domain": "a"}))
    assert [(item.record.timestamp, item.record.metadata["step"]) for item in added] == [(1.0, 1)]


def test_same_lesson_is_about_words():
    assert same_lesson("Use A, then B!", "use a then b")
    assert not same_lesson("Use alpha then beta.", "Use gamma then delta.")


def test_rewording_at_a_given_time(library):
    first, _ = texts(library)
    library.reword(first, "Other words.", timestamp=7.0)
    assert library.get(first).record == Lesson("Other words.", 7.0)
