"""A picker that sends the same key to the same instance, as long as that one has no more than its share of calls.

Rendezvous hashing (Thaler and Ravishankar 1998): each instance draws a number for the key, and the best one wins. When
an instance leaves only its own keys move, when one comes it takes its share of everybody's. With bounded loads
(Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2018; HAProxy's hash-balance-factor): an
instance with `bound` times its share of the calls in flight, and not fewer than `bound_from`, is passed over for the
next one.
"""

from __future__ import annotations

from hashlib import blake2b
from math import ceil, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_mesh.balancing.hash_key import KeyOf
    from fastapi_mesh.core.instance import InstanceState
    from fastapi_mesh.core.message import Request
    from fastapi_mesh.core.state import Picker

_MASK = (1 << 64) - 1
_KEPT = 4096
"""Keys whose instance is remembered, so that most picks cost the same for any number of instances."""
_KEPT_LENGTH = 128
"""Bytes of the longest of them: clients choose what they send."""


class ConsistentHash:
    """Picks by the key that `key_of` finds; requests that have none are left to `otherwise`.

    All processes with the same list choose alike, since nothing is hashed but the key and the instance's id.
    """

    __slots__ = ("_bound", "_equal", "_from", "_kept", "_key_of", "_otherwise", "_salts", "_seen")

    def __init__(self, key_of: KeyOf, otherwise: Picker, *, bound: float, bound_from: int = 1) -> None:
        self._key_of = key_of
        self._otherwise = otherwise
        self._bound = bound
        self._from = bound_from
        self._seen: Sequence[InstanceState] = ()
        self._salts: tuple[int, ...] = ()
        self._equal = True
        self._kept: dict[bytes, InstanceState] = {}

    def pick(self, instances: Sequence[InstanceState], request: Request) -> InstanceState:
        key = self._key_of(request)
        if key is None:
            return self._otherwise.pick(instances, request)
        if request.context.tried:  # another attempt, among those that are left; not worth forgetting anything for
            return self._allowed(instances, _salts(instances), key)
        if instances is not self._seen:  # a list is never changed, but replaced
            self._seen = instances
            self._salts = _salts(instances)
            self._equal = len({each.weight for each in instances}) == 1
            self._kept.clear()
        best = self._kept.get(key)
        if best is None:
            best = self._best(instances, key)
            if len(key) <= _KEPT_LENGTH:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[key] = best
        if best.in_flight < self._from or best.in_flight < self._most(instances, best):
            return best
        return self._allowed(instances, self._salts, key)

    def _best(self, instances: Sequence[InstanceState], key: bytes) -> InstanceState:
        """The first in rank. With equal weights nobody needs a logarithm to find it."""
        if not self._equal:
            return _ranking(instances, self._salts, key)[0]
        hashed = _number(key)
        numbers = [_mixed(hashed ^ salt) for salt in self._salts]
        return instances[numbers.index(max(numbers))]

    def _allowed(self, instances: Sequence[InstanceState], salts: Sequence[int], key: bytes) -> InstanceState:
        """The highest in rank that has room for one more."""
        ranking = _ranking(instances, salts, key)
        for each in ranking:
            if each.in_flight < self._from or each.in_flight < self._most(instances, each):
                return each
        return ranking[0]

    def _most(self, instances: Sequence[InstanceState], instance: InstanceState) -> int:
        """How many calls `instance` may have when the one that is being placed is counted too."""
        calls, weight = 1, 0.0
        for each in instances:
            calls += each.in_flight
            weight += each.weight
        return ceil(self._bound * calls * instance.weight / weight)


def _salts(instances: Sequence[InstanceState]) -> tuple[int, ...]:
    return tuple(_number(each.instance.id.encode()) for each in instances)


def _number(text: bytes) -> int:
    """64 bits that are the same in every process and version of Python, which `hash` is not."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def _mixed(number: int) -> int:
    """64 bits, each of which depends on all of `number` (the finalizer of splitmix64, Steele et al. 2014)."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def _ranking(instances: Sequence[InstanceState], salts: Sequence[int], key: bytes) -> list[InstanceState]:
    """All instances, first where the key belongs. Of weights each gets its share (weighted rendezvous hashing)."""
    hashed = _number(key)
    scores = []
    for each, salt in zip(instances, salts, strict=True):
        # -ln(u) / weight is exponentially distributed at that rate, and the least of such is each by its share.
        scores.append((-log((_mixed(hashed ^ salt) + 1) / 2**64) / each.weight, each.instance.id, each))
    scores.sort(key=_rank)
    return [each for _, _, each in scores]


def _rank(score: tuple[float, str, InstanceState]) -> tuple[float, str]:
    return score[0], score[1]
