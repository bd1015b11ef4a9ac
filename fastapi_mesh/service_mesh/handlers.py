"""Calls functions of the user's that are told of something: async ones here, others in a thread."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def run_handler(function: Callable[..., object], *arguments: object) -> None:
    """Call `function` and wait until it is through. Raises what it raises."""
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        result = function(*arguments)
    else:
        result = await asyncio.to_thread(function, *arguments)
    if inspect.isawaitable(result):
        await result
