"""Four uses of an experience library: compiler feedback, tasks one after the other, domains, and where to sample more.

    python examples/experience_library/use_cases.py

The Python form of the guide's use cases. No model: answers are drawn from lists. Code is compiled in a worker process,
and never run.
"""

import random

from trl_grpo_ext import ExperienceLibrary
from trl_grpo_ext.rewards import python_compiles_reward

GROUP = 8
CODE = ["print('hello')", "def f(x): return x", "def f(x) return x", "for i in range(3) print(i)"]


def rollouts_of(prompt: str, answers: list[str], randomness: random.Random) -> list[tuple[str, str]]:
    """A group: (prompt, response) pairs."""
    return [(prompt, randomness.choice(answers)) for _ in range(GROUP)]


def code_with_compiler_feedback(randomness: random.Random) -> None:
    """Code that compiles is kept, and becomes an example in the next prompt."""
    library, compiles = ExperienceLibrary(seed=0), python_compiles_reward()
    for prompt in ("Print a greeting", "Write the identity function"):
        rollouts = rollouts_of(prompt, CODE, randomness)
        completions = [response for _, response in rollouts]
        library.add_rollout_group(rollouts, compiles(prompts=[prompt] * GROUP, completions=completions))
        print(f"Library size: {library.library_size()}")
    example = library.sample_experience()
    if example is not None:
        print(f"Example:\n{example.response}\n\nNow write: a loop")


def continual_learning(randomness: random.Random) -> None:
    """What one task taught is still there when the next one comes."""
    library = ExperienceLibrary(seed=0)
    tasks = {"Upper-case a string": ["s.upper()", "upper(s)"], "Read a file": ["open(p).read()", "read(p)"]}
    for prompt, answers in tasks.items():
        rollouts = rollouts_of(prompt, answers, randomness)
        library.add_rollout_group(rollouts, [float("." in response) for _, response in rollouts])
    # Episodes of exactly this prompt, then up to two of similar ones.
    for episode in library.get_experiences_for_prompt("Read a file", similar=2):
        print(f"{episode.prompt}: {episode.response}")


def several_domains(randomness: random.Random) -> None:
    """Episodes carry their domain, by which they are drawn and listed."""
    library = ExperienceLibrary(seed=0)
    domains = {"web": ["<p>text</p>", "<p>text"], "shell": ["ls -l", "ls l"]}
    for domain, answers in domains.items():
        rollouts = rollouts_of(f"An example of {domain}", answers, randomness)
        rewards = [float(response == answers[0]) for _, response in rollouts]
        ids = library.add_rollout_group(rollouts, rewards, metadata={"domain": domain})
        library.tag(ids, checked=True)
    web = library.sample_experience(where={"domain": "web"})
    print(f"web: {len(list(library.records('episode', where={'domain': 'web'})))} episodes, such as {web.response}")


def where_to_sample_more(randomness: random.Random) -> None:
    """Prompts with few episodes are the ones to sample again."""
    library = ExperienceLibrary(seed=0)
    prompt = "Name a prime above 20"
    rollouts = rollouts_of(prompt, ["21", "23", "27", "29"], randomness)
    library.add_rollout_group(rollouts, [float(response in ("23", "29")) for _, response in rollouts])
    if len(library.get_experiences_for_prompt(prompt)) < 5:
        print(f"Need more examples for prompt: {prompt}")
    for found in library.coverage(minimum=5):
        print(found)


def main() -> None:
    for use in (code_with_compiler_feedback, continual_learning, several_domains, where_to_sample_more):
        print(f"== {use.__name__}")
        use(random.Random(0))


if __name__ == "__main__":
    main()
