"""Is the completion JSON, and does it satisfy a schema?"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from trl_grpo_ext.rewards.extraction import last_fenced_block
from trl_grpo_ext.rewards.named import NamedReward, check_count
from trl_grpo_ext.rewards.text import Completion, completion_text

# Regular expressions can backtrack without end, and references can repeat work exponentially.
_UNBOUNDED_KEYWORDS = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_INVALID = object()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse(text: str) -> Any:
    """Return the value of a JSON text, or `_INVALID`. NaN and Infinity are not JSON; nor is nesting past the stack."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _INVALID


def parse_json_answer(text: str, max_characters: int) -> Any:
    """Return the JSON value that a completion holds: its last fenced block, else the whole text. `_INVALID` if none."""
    if len(text) > max_characters:
        return _INVALID
    block = last_fenced_block(text)
    return _parse(text if block is None else block)


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            yield from node.items()
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _identity(value: Any) -> Any:
    """Return a hashable form in which two JSON values are equal exactly when JSON Schema calls them equal."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _identity(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(_identity, value)))
    return (isinstance(value, bool), value)


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[Any]:
    # jsonschema's own check compares every pair of objects.
    from jsonschema import ValidationError

    if unique and isinstance(instance, list) and len(set(map(_identity, instance))) < len(instance):
        yield ValidationError("items are not unique")


def _validator(schema: Mapping[str, Any] | bool, source: str) -> Any:
    """Return a jsonschema validator that never fetches anything."""
    try:
        import jsonschema
        from referencing import Registry
    except ImportError as error:
        raise ImportError("JsonSchema needs the package jsonschema: pip install jsonschema.") from error
    base = jsonschema.Draft202012Validator
    if isinstance(schema, Mapping):
        base = jsonschema.validators.validator_for(schema, default=base)
    try:
        base.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        raise ValueError(f"{source} is not a valid JSON Schema: {str(error)[:200]}") from error
    # An empty registry: without it, jsonschema asks the network for references it doesn't know.
    return jsonschema.validators.extend(base, {"uniqueItems": _unique_items})(schema, registry=Registry())


@dataclass(frozen=True, kw_only=True)
class JsonSchema(NamedReward):
    """1.0 where the completion is JSON and satisfies the schema, else 0.0. Range {0, 1}.

    The JSON is the last fenced block of the completion, or the whole completion when there is no fence. The schema is
    `schema`, or the row's column `json_schema`; with neither, any JSON passes. `format` is not checked. Needs the
    package jsonschema when there is a schema.

    Failure modes: a schema without `required` and `additionalProperties: false` accepts `{}`; validity says nothing
    about the values' truth. Size is bounded by `max_characters`; nothing is fetched for a `$ref`.

    Args:
        schema: a schema you trust, for every row: a mapping or its JSON text. None (default) to use the column.
        trust_column: allow `pattern`, `patternProperties` and local references in the column `json_schema`. False by
            default: a regular expression from the data can run for hours on a short text.
        max_characters: longer completions score 0; 20,000 by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ImportError: jsonschema is not installed.
        ValueError: the schema is not a valid JSON Schema, refers outside itself, or comes from the column with
            keywords that are not allowed there; or `max_characters` is not at least 1.
    """

    schema: Mapping[str, Any] | str | None = None
    trust_column: bool = False
    max_characters: int = 20_000
    name: str = "json_schema"

    def __post_init__(self) -> None:
        check_count("JsonSchema", "max_characters", self.max_characters, at_least=1)
        if self.schema is not None:
            self._compiled(self.schema, "JsonSchema: schema", trusted=True)

    def _compiled(self, schema: Any, source: str, trusted: bool) -> Any:
        value = _parse(schema) if isinstance(schema, str) else schema
        if not isinstance(value, (Mapping, bool)):
            raise ValueError(f"{source} must be a mapping or its JSON text, not {schema!r:.200}.")
        for keyword, argument in _keywords(value):
            if keyword in _UNBOUNDED_KEYWORDS and not trusted:
                raise ValueError(
                    f"{source} uses {keyword!r}, whose run time is not bounded. Remove it, pass the schema as "
                    "JsonSchema(schema=...), or set trust_column=True if you wrote the data."
                )
            if keyword in _REFERENCES and isinstance(argument, str) and not argument.startswith("#"):
                raise ValueError(f"{source} refers to {argument!r}; only references within the schema (#...) work.")
        return _validator(value, source)

    def _satisfies(self, text: str, validator: Any) -> bool:
        value = parse_json_answer(text, self.max_characters)
        if value is _INVALID:
            return False
        try:
            return validator is None or bool(validator.is_valid(value))
        except (RecursionError, ArithmeticError):
            # Nested deeper than the validator can follow, or a number such as 1e999 under `multipleOf`.
            return False

    def __call__(
        self, completions: Sequence[Completion], json_schema: Sequence[Any] | None = None, **kwargs: Any
    ) -> list[float]:
        """Return one reward per completion; see the class."""
        if self.schema is not None:
            validators = [self._compiled(self.schema, "JsonSchema: schema", trusted=True)] * len(completions)
        else:
            schemas = [None] * len(completions) if json_schema is None else json_schema
            validators = [
                None
                if schema is None
                else self._compiled(schema, f"Column 'json_schema' in row {row}", self.trust_column)
                for row, schema in enumerate(schemas)
            ]
        return [
            float(self._satisfies(completion_text(completion), validator))
            for completion, validator in zip(completions, validators, strict=True)
        ]


json_schema = JsonSchema()
