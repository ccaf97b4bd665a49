"""A method of one object, replaced for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Method = Callable[..., Any]


@contextmanager
def replaced_method(owner: Any, name: str, make: Callable[[Method], Method]) -> Iterator[None]:
    """Put `make(method)` in the place of a method of this one object, and the object's own back afterwards.

    Args:
        owner: the object; its class stays as it is.
        name: of the method.
        make: is given the bound method that is there now.
    """
    own = owner.__dict__.get(name)
    setattr(owner, name, make(getattr(owner, name)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
