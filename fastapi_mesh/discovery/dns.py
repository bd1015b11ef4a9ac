"""A backend that asks DNS for SRV or address records, as often as their TTLs say.

The only file that knows dnspython.
"""

from __future__ import annotations

import asyncio
import errno
import random
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from fastapi_mesh.core.clock import SystemClock
from fastapi_mesh.core.instance import Instance
from fastapi_mesh.core.tasks import Supervisor
from fastapi_mesh.discovery.lists import ordered, same
from fastapi_mesh.exceptions import ConfigurationError, ServiceDiscoveryError

try:
    import dns.asyncresolver
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.rdatatype
    import dns.resolver
except ImportError as error:  # pragma: no cover - `nox -s bare` is without it
    raise ConfigurationError(
        "discovery.backend: 'dns' needs the package dnspython: pip install 'fastapi-mesh[dns]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from dns.rdata import Rdata
    from dns.rdtypes.IN.A import A
    from dns.rdtypes.IN.SRV import SRV

    from fastapi_mesh.config.dns import DnsConfig
    from fastapi_mesh.core.clock import Clock

ONE_TRY = 2.0
"""Seconds that one resolver may take before the next one is asked."""

PAYLOAD = 1232
"""Bytes of a UDP answer that no network fragments (DNS Flag Day 2020)."""

ALIASES = 8
"""CNAMEs followed that the resolver has not followed itself."""

AT_ONCE = 16
"""Names asked for at the same time."""

LATER = 0.1
"""The part of the TTL by which may be asked late, so that nodes don't ask together."""

NO_WEIGHT = 0.1
"""The weight of a target with weight 0 beside others: RFC 2782 wants "a very small chance"."""

Family = Literal["any", "ipv4", "ipv6"]
_TYPES: Mapping[Family, tuple[dns.rdatatype.RdataType, ...]] = {
    "any": (dns.rdatatype.A, dns.rdatatype.AAAA),
    "ipv4": (dns.rdatatype.A,),
    "ipv6": (dns.rdatatype.AAAA,),
}


@dataclass(frozen=True, slots=True)
class _Found:
    """Records as texts, or SRV records, and the seconds for which they count."""

    addresses: tuple[str, ...] = ()
    services: tuple[SRV, ...] = ()
    ttl: float = float("inf")
    additional: Mapping[dns.name.Name, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _List:
    instances: tuple[Instance, ...]
    until: float


class DnsDiscovery:
    """A Discovery. `nameserver` is the resolver's address and port, None for those of /etc/resolv.conf.

    A name that does not exist is an empty list; a resolver that does not answer, or says that it can't (SERVFAIL,
    REFUSED), is an error. Of SRV records those of the best priority are used whose target has an address; the weight of
    a target is shared by its addresses. `timeout` is the seconds for all that one list takes.
    """

    def __init__(
        self,
        config: DnsConfig,
        *,
        nameserver: tuple[str, int] | None = None,
        timeout: float = 10.0,
        clock: Clock | None = None,
        supervisor: Supervisor | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._nameserver = nameserver
        self._timeout = timeout
        self._clock: Clock = clock or SystemClock()
        self._supervisor = supervisor or Supervisor()
        self._jitter = jitter
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._lists: dict[str, _List] = {}
        self._turns: dict[str, _Turn] = {}
        self._counts = {"lookups": 0, "queries": 0, "failures": 0}

    def statistics(self) -> dict[str, int]:
        """Lists looked up, queries sent for them, and lists that could not be had."""
        return dict(self._counts)

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """See `Discovery.watch`."""
        last: tuple[Instance, ...] | None = None
        while True:
            found = await self._list(service)
            if last is None or not same(found.instances, last):
                last = found.instances
                yield last
            else:
                await self._clock.sleep(max(0.0, found.until - self._clock.now()))

    async def _list(self, service: str) -> _List:
        """The list that counts now, from the last lookup or a new one; all watchers of a service share it."""
        turn = self._turns.setdefault(service, _Turn())
        turn.users += 1
        asked = turn.lock.locked()
        try:
            async with turn.lock:
                if asked and turn.failure is not None:  # we waited for that answer
                    raise ServiceDiscoveryError(str(turn.failure), service=service) from turn.failure
                found = self._lists.get(service)
                if found is None or found.until <= self._clock.now():
                    found = self._lists[service] = await self._look_up(service)
                turn.failure = None
                return found
        except ServiceDiscoveryError as error:
            turn.failure = error
            raise
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[service]
                self._lists = {name: each for name, each in self._lists.items() if each.until > self._clock.now()}

    async def _look_up(self, service: str) -> _List:
        self._counts["lookups"] += 1
        try:
            async with asyncio.timeout(self._timeout):
                name = self._name(service)
                if name is None:
                    return _List((), self._clock.now() + self._config.max_ttl)
                if self._config.record == "srv":
                    instances, ttl = await self._by_service_records(service, name)
                else:
                    instances, ttl = await self._by_addresses(service, name)
        except (dns.exception.DNSException, OSError, TimeoutError) as error:
            self._counts["failures"] += 1
            self._resolver = None  # /etc/resolv.conf may have changed
            text = str(error) or f"no answer within {self._timeout:g} s"
            raise ServiceDiscoveryError(f"DNS: {text}", service=service) from error
        ttl = min(max(ttl, self._config.min_ttl), self._config.max_ttl) * (1.0 + LATER * self._jitter())
        return _List(ordered(instances), self._clock.now() + ttl)

    def _name(self, service: str) -> dns.name.Name | None:
        """What is asked for; None where that can be no name, and so no service."""
        config = self._config
        template = config.name or ("_http._tcp.{service}" if config.record == "srv" else "{service}")
        text = template.replace("{service}", service)
        domain = config.domain.strip(".")
        try:
            name = dns.name.from_text(f"{text}.{domain}." if domain else text, None)
            return name if config.search else name.derelativize(dns.name.root)
        except dns.exception.DNSException:  # an empty label, or one over 63 characters
            return None

    async def _by_addresses(self, service: str, name: dns.name.Name) -> tuple[list[Instance], float]:
        found = await self._addresses(name)
        port = self._config.service_port
        assert port is not None, "its settings say so"
        return [self._instance(service, each, port, name, 1.0) for each in found.addresses], found.ttl

    async def _by_service_records(self, service: str, name: dns.name.Name) -> tuple[list[Instance], float]:
        """The targets of the best priority that has an address."""
        found = await self._ask(name, dns.rdatatype.SRV)
        ttl = found.ttl
        for priority in sorted({each.priority for each in found.services}):
            group = [each for each in found.services if each.priority == priority and each.target != dns.name.root]
            addresses, shortest = await self._targets(sorted({each.target for each in group}), found.additional)
            ttl = min(ttl, shortest)
            heavy = any(each.weight for each in group)
            instances = [
                self._instance(
                    service, address, each.port, each.target, _weight(each, heavy) / len(addresses[each.target])
                )
                for each in group
                for address in addresses[each.target]
            ]
            if instances:
                return instances, ttl
        return [], ttl

    async def _targets(
        self, targets: Sequence[dns.name.Name], known: Mapping[dns.name.Name, tuple[str, ...]]
    ) -> tuple[dict[dns.name.Name, tuple[str, ...]], float]:
        """The addresses of each target, and how long they count; those that came along need not be asked for."""
        addresses = {target: known.get(target, ()) for target in targets}
        asked = [target for target in targets if not addresses[target]]
        places = asyncio.Semaphore(AT_ONCE)

        async def ask(target: dns.name.Name) -> _Found | Exception:
            async with places:
                try:
                    return await self._addresses(target)
                except (dns.exception.DNSException, OSError) as error:
                    return error

        tasks = [self._supervisor.start(ask(target), name=f"dns:{target}") for target in asked]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        ttl = float("inf")
        for target, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            addresses[target] = answer.addresses
            ttl = min(ttl, answer.ttl)
        return addresses, ttl

    async def _addresses(self, name: dns.name.Name) -> _Found:
        """The IPv4 addresses, or else the IPv6 ones, as the settings say."""
        ttl = float("inf")
        for kind in _TYPES[self._config.family]:
            found = await self._ask(name, kind)
            ttl = min(ttl, found.ttl)
            if found.addresses:
                return _Found(addresses=found.addresses, ttl=ttl)
        return _Found(ttl=ttl)

    async def _ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> _Found:
        """The records of one name; none for a name without. Raises DNSException, OSError."""
        ttl = float("inf")
        for _ in range(ALIASES):
            self._counts["queries"] += 1
            try:
                answer = await self._made().resolve(
                    name, kind, tcp=self._config.tcp, search=self._config.search, raise_on_no_answer=False
                )
            except dns.resolver.NXDOMAIN as error:
                return _Found(ttl=min([ttl, *_negative_ttls(error)]))
            ttl = min(ttl, float(answer.chaining_result.minimum_ttl))
            if answer.rrset is not None:
                return _found(answer, ttl, _TYPES[self._config.family][0])
            if answer.canonical_name in (name, answer.qname):
                return _Found(ttl=ttl)
            name = answer.canonical_name  # the resolver has left it to us to follow an alias
        raise OSError(errno.ELOOP, f"more than {ALIASES} aliases, the last of them {name}")

    def _made(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            resolver = dns.asyncresolver.Resolver(configure=self._nameserver is None)
            if self._nameserver is not None:
                address, resolver.port = self._nameserver
                resolver.nameservers = [address]
            resolver.lifetime = self._timeout
            resolver.timeout = min(ONE_TRY, self._timeout)
            resolver.use_edns(0, 0, PAYLOAD)
            self._resolver = resolver
        return self._resolver

    def _instance(self, service: str, address: str, port: int, name: dns.name.Name, weight: float) -> Instance:
        host = f"[{address}]" if ":" in address else address
        scheme = self._config.scheme
        server_name = name.to_text(omit_final_dot=True)
        return Instance(
            service,
            f"{host}:{port}",
            address,
            port,
            scheme=scheme,
            health="unknown",
            weight=weight,
            metadata=MappingProxyType({"server_name": server_name} if scheme in ("https", "h2") else {}),
        )


class _Turn:
    """Who looks up a service, how many want to, and how it failed."""

    __slots__ = ("failure", "lock", "users")

    def __init__(self) -> None:
        self.failure: ServiceDiscoveryError | None = None
        self.lock = asyncio.Lock()
        self.users = 0


def _weight(record: SRV, others_have_one: bool) -> float:
    return float(record.weight) or (NO_WEIGHT if others_have_one else 1.0)


def _found(answer: dns.resolver.Answer, ttl: float, first: dns.rdatatype.RdataType) -> _Found:
    """What an answer says; of the addresses that came along, those of the type that would be asked for first."""
    records = cast("Iterable[Rdata]", answer)
    if answer.rdtype != dns.rdatatype.SRV:
        return _Found(addresses=tuple(sorted(cast("A", each).address for each in records)), ttl=ttl)
    additional: dict[dns.name.Name, tuple[str, ...]] = {}
    for rrset in answer.response.additional:
        if rrset.rdtype == first:
            additional[rrset.name] = tuple(sorted(cast("A", each).address for each in rrset))
            ttl = min(ttl, float(rrset.ttl))
    return _Found(services=tuple(cast("SRV", each) for each in records), ttl=ttl, additional=additional)


def _negative_ttls(error: dns.resolver.NXDOMAIN) -> list[float]:
    """For how long names do not exist (RFC 2308)."""
    responses: Mapping[dns.name.Name, dns.message.QueryMessage] = error.kwargs.get("responses", {})
    return [float(response.resolve_chaining().minimum_ttl) for response in responses.values()]
