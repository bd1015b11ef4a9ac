"""Each strategy by itself: who is picked, and how often."""

from __future__ import annotations

from collections import Counter

import pytest

from fastapi_mesh.balancing.least_response_time import note_response_time
from fastapi_mesh.config.balancing import LoadBalancingStrategy
from fastapi_mesh.core.instance import InstanceState
from fastapi_mesh.core.message import Request
from fastapi_mesh.testing.clock import FakeClock
from tests.balancing.picker_support import instances, picker, request


@pytest.mark.spec("X-01")
def test_random_takes_each_as_often_as_its_weight_says() -> None:
    one = picker(strategy="random")
    even, uneven = instances(*[1.0] * 4), instances(1.0, 2.0, 5.0)

    alike = Counter(one.pick(even, request()) for _ in range(8000))
    shares = Counter(one.pick(uneven, request()) for _ in range(8000))

    assert all(count == pytest.approx(2000, rel=0.1) for count in alike.values())
    assert [shares[each] for each in uneven] == pytest.approx([1000, 2000, 5000], rel=0.1)


@pytest.mark.spec("X-01")
def test_random_hears_of_new_weights() -> None:
    one = picker(strategy="random")
    before = instances(1.0, 1.0)
    for _ in range(3):
        one.pick(before, request())
    after = instances(1.0, 1000.0)

    assert Counter(one.pick(after, request()) for _ in range(500))[after[1]] > 480


@pytest.mark.spec("X-01", "S-120", "B22")
def test_least_response_time_goes_by_time_calls_in_flight_and_weight() -> None:
    clock = FakeClock()
    one = picker(clock, strategy="least_response_time")
    quick, slow = pair = instances(1.0, 1.0)
    for each, seconds in ((quick, 0.01), (slow, 0.05)):
        note_response_time(each, seconds, clock.now(), default=0.03, decay=10.0, failed=False)

    assert {one.pick(pair, request()) for _ in range(20)} == {quick}
    quick.in_flight = 5  # six times 10 ms against 50 ms
    assert {one.pick(pair, request()) for _ in range(20)} == {slow}
    quick.weight = 2.0
    assert {one.pick(pair, request()) for _ in range(20)} == {quick}


@pytest.mark.spec("X-01")
def test_a_slower_answer_counts_at_once_and_a_quicker_one_by_and_by() -> None:
    def note(instance: InstanceState, seconds: float, now: float, *, failed: bool = False) -> float:
        note_response_time(instance, seconds, now, default=0.03, decay=10.0, failed=failed)
        return instance.response_time

    (instance,) = instances(1.0)
    assert note(instance, 0.01, 0.0) == 0.01
    assert note(instance, 0.5, 0.1) == 0.5  # the peak
    assert 0.4 < note(instance, 0.01, 1.1) < 0.46
    assert note(instance, 0.01, 60.0) == pytest.approx(0.01, rel=0.2)
    assert note(instance, 0.001, 60.1, failed=True) == pytest.approx(0.01, rel=0.2)  # failing quickly is no merit
    assert note(instance, 25.0, 60.2, failed=True) == 25.0  # a timeout is a slow answer

    (fresh,) = instances(1.0)
    assert note(fresh, 0.001, 0.0, failed=True) < 0  # not known yet


@pytest.mark.spec("X-01")
def test_an_instance_that_never_answered_is_taken_to_need_30_ms_and_a_slow_one_is_tried_again() -> None:
    clock = FakeClock()
    one = picker(clock, strategy="least_response_time")
    fresh, known = pair = instances(1.0, 1.0)
    note_response_time(known, 0.02, clock.now(), default=0.03, decay=10.0, failed=False)
    assert {one.pick(pair, request()) for _ in range(20)} == {known}

    note_response_time(fresh, 2.0, clock.now(), default=0.03, decay=10.0, failed=False)
    later = clock.now() + 60
    assert one.estimate(fresh, later) < 0.01  # type: ignore[attr-defined]  # of this picker only


@pytest.mark.spec("X-01", "B23")
@pytest.mark.parametrize(
    ("hash_on", "one", "other"),
    [
        ("header:X-User-ID", request((b"x-user-id", b"42")), request((b"X-User-Id", b"42"), target=b"/other?a=1")),
        ("cookie:session", request((b"cookie", b"a=1; session=s1")), request((b"Cookie", b"session=s1;b=2"))),
        ("query:user", request(target=b"/x?user=1&b=2"), request(target=b"/y?a=1&user=1")),
        ("path", request(target=b"/x?user=1"), request(target=b"/x?user=2")),
    ],
)
def test_the_same_key_goes_to_the_same_instance(hash_on: str, one: Request, other: Request) -> None:
    everyone = instances(*[1.0] * 50)

    found = {
        picker(strategy="consistent_hash", hash_on=hash_on, seed=seed).pick(everyone, each)
        for seed in range(5)
        for each in (one, other)
    }

    assert len(found) == 1


@pytest.mark.spec("X-01")
@pytest.mark.parametrize(
    ("hash_on", "without"),
    [
        ("header:X-User-ID", request((b"x-user-id", b""))),
        ("cookie:session", request((b"cookie", b"sess=1; session=; x"))),
        ("query:user", request(target=b"/x?xuser=1&user=")),
    ],
)
def test_requests_without_the_key_are_spread(hash_on: str, without: Request) -> None:
    one = picker(strategy="consistent_hash", hash_on=hash_on)
    everyone = instances(*[1.0] * 5)

    assert {one.pick(everyone, without) for _ in range(200)} == set(everyone)


@pytest.mark.spec("X-01")
def test_hashing_knows_weights() -> None:
    one = picker(strategy="consistent_hash")
    everyone = instances(1.0, 1.0, 2.0)

    found = Counter(one.pick(everyone, request(target=b"/%d" % n)) for n in range(4000))

    assert [found[each] / 4000 for each in everyone] == pytest.approx([0.25, 0.25, 0.5], abs=0.03)


@pytest.mark.spec("X-01")
def test_hashing_is_the_same_on_every_machine() -> None:
    """Gateways of several versions and machines must agree, so this must never change."""
    one = picker(strategy="consistent_hash")
    everyone = instances(*[1.0] * 10)

    found = [one.pick(everyone, request(target=b"/%d" % n)).instance.id[6:] for n in range(12)]

    assert " ".join(found) == EXPECTED


EXPECTED = "5 6 2 5 6 1 8 10 5 6 4 5"


@pytest.mark.spec("X-01", "B23")
def test_an_instance_with_more_than_its_share_is_passed_over() -> None:
    one = picker(strategy="consistent_hash", bounded_load_from=1)
    everyone = instances(*[1.0] * 4)
    own = one.pick(everyone, request(target=b"/hot"))
    for each in everyone:
        each.in_flight = 4

    own.in_flight = 5
    assert one.pick(everyone, request(target=b"/hot")) is own  # 1.25 * 18 / 4 = 5.6, rounded up: the sixth may come
    own.in_flight = 6
    second = one.pick(everyone, request(target=b"/hot"))
    assert second is not own
    assert one.pick(everyone, request(target=b"/hot")) is second, "the next in rank, which is always the same"

    usual = picker(strategy="consistent_hash")
    assert usual.pick(everyone, request(target=b"/hot")) is own, "so few calls move nothing"
    own.in_flight = 8
    assert usual.pick(everyone, request(target=b"/hot")) is second


@pytest.mark.spec("X-01")
def test_keys_of_clients_take_up_no_memory_without_end() -> None:
    one = picker(strategy="consistent_hash")
    everyone = instances(*[1.0] * 3)
    for n in range(10_000):
        one.pick(everyone, request(target=b"/%d" % n))
    one.pick(everyone, request(target=b"/" + b"x" * 10_000))

    assert len(one._kept) <= 4096  # type: ignore[attr-defined]
    assert max(map(len, one._kept)) <= 128  # type: ignore[attr-defined]


@pytest.mark.spec("S-121", "B23")
@pytest.mark.parametrize("strategy", LoadBalancingStrategy)
def test_sticky_sessions_on_top_of_every_strategy(strategy: LoadBalancingStrategy) -> None:
    one = picker(strategy=strategy, sticky_sessions=True, session_affinity_header="X-User-ID")
    everyone = instances(*[1.0] * 6)
    user = request((b"x-user-id", b"u1"))

    own = {one.pick(everyone, user) for _ in range(20)}
    others = {one.pick(everyone, request(target=b"/%d" % n)) for n in range(200)}

    assert len(own) == 1
    assert others == set(everyone)
    (first,) = own
    left = tuple(each for each in everyone if each is not first)  # it was ejected
    assert len({one.pick(left, user) for _ in range(20)}) == 1
    assert one.pick(everyone, user) is first


@pytest.mark.spec("S-121")
def test_the_header_of_sticky_sessions_counts_before_the_cookie() -> None:
    one = picker(sticky_sessions=True, session_affinity_cookie="lb")
    everyone = instances(*[1.0] * 20)
    by_cookie = one.pick(everyone, request((b"cookie", b"lb=abc")))

    about_to_be_set = request()
    about_to_be_set.context.affinity = b"abc"
    assert one.pick(everyone, about_to_be_set) is by_cookie
    headers = [request((b"cookie", b"lb=abc"), (b"x-user-id", b"%d" % n)) for n in range(5)]
    assert len({one.pick(everyone, each) for each in headers}) > 1


@pytest.mark.spec("X-01")
def test_keys_are_where_they_were_when_weights_become_equal_again() -> None:
    one = picker(strategy="consistent_hash")
    equal, other = instances(*[2.0] * 7), instances(*[2.0] * 6, 2.0000001)

    found = [
        (one.pick(equal, each), one.pick(other, each)) for each in (request(target=b"/%d" % n) for n in range(500))
    ]

    assert all(a.instance.id == b.instance.id for a, b in found)
