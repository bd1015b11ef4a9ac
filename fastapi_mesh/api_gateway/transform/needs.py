"""Whether a transformer reads bodies: what its code says, unless it says so itself.

A body that is read whole can't be streamed, and whether a transformer will read it has to be known before it is called:
`request.body` is an ordinary attribute. So its code is looked at once, when it is added: does it, or a function that it
calls by name (its own methods, functions of its module, what it imported by name), load an attribute called `body`?
`buffer_body = True` or `False` on the transformer decides instead. Where the code hides it from this look, reading
`.body` raises an error that says what to do; nothing is ever read wrongly.
"""

from __future__ import annotations

import dis
import functools
import inspect
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTRIBUTE = "body"
_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_MOST_FUNCTIONS = 1000
"""Functions looked at for one transformer; whoever calls more is taken to read bodies."""


def reads_body(transformer: object, method: object) -> bool:
    """Whether `method` (of `transformer`, or the function itself) may read a body."""
    said = getattr(transformer, "buffer_body", None)
    if said is not None:
        return bool(said)
    pending = [(function, transformer) for function in _functions(method)]
    seen: set[int] = set()
    while pending:
        function, owner = pending.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        if len(seen) > _MOST_FUNCTIONS:
            return True
        names: set[str] = set()
        for code in _codes(function.__code__):
            names.update(code.co_names)
            if any(each.opname in _LOADS and each.argval == ATTRIBUTE for each in dis.get_instructions(code)):
                return True
        pending += [(each, owner) for each in _called(function, owner, names)]
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """`code`, and that of the functions, lambdas and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _called(function: FunctionType, owner: object, names: set[str]) -> Iterator[FunctionType]:
    """Functions that the code may mean by `names`: methods of its object, globals of its module, closed-over values."""
    for name in names:
        for place in (owner, *type(owner).__mro__):  # all of them, since it may call super()
            yield from _functions(getattr(place, "__dict__", {}).get(name))
        yield from _functions(function.__globals__.get(name))
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if value is not owner:
            yield from _functions(value)


def _functions(value: object) -> Iterator[FunctionType]:
    """The Python functions that calling `value` runs."""
    if isinstance(value, FunctionType):
        yield value
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:
            yield from _functions(wrapped)
    elif isinstance(value, (MethodType, staticmethod, classmethod)):
        yield from _functions(value.__func__)
    elif isinstance(value, (functools.partial, functools.partialmethod)):
        yield from _functions(value.func)
    elif isinstance(value, property):
        yield from _functions(value.fget)
    elif isinstance(value, type) or value is None:
        return
    elif isinstance(call := inspect.getattr_static(type(value), "__call__", None), FunctionType):
        yield call
