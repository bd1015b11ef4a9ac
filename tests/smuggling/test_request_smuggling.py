"""No request that can be read in two ways reaches a service, and none that is hidden in another's body or head."""

from __future__ import annotations

import pytest

from tests.api_gateway.gateway_support import SERVERS
from tests.smuggling import chunked, heads, lengths
from tests.smuggling.rig import run_all

pytestmark = [pytest.mark.anyio, pytest.mark.spec("X-22")]

FAMILIES = {"lengths": lengths.CASES, "chunked": chunked.CASES, "heads": heads.CASES}


@pytest.mark.parametrize("http", ["standalone", *SERVERS])
@pytest.mark.parametrize("family", FAMILIES)
async def test_of_each_case_exactly_what_is_allowed_reaches_the_service(family: str, http: str) -> None:
    outcomes = await run_all(http, FAMILIES[family])

    problems = [f"{each.case.name}: {each.problem}" for each in outcomes if each.problem]
    assert not problems, "\n".join(problems)


@pytest.mark.soak
@pytest.mark.parametrize("http", ["standalone", *SERVERS])
@pytest.mark.parametrize("piece", [1, 7, 40])
async def test_however_the_network_cuts_it(http: str, piece: int) -> None:
    cases = [case for cases in FAMILIES.values() for case in cases if len(case.payload) < 10_000]

    outcomes = await run_all(http, cases, piece=piece)

    problems = [f"{each.case.name}: {each.problem}" for each in outcomes if each.problem]
    assert not problems, "\n".join(problems)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for cases in FAMILIES.values() for case in cases]

    assert len(names) == len(set(names)) >= 300
