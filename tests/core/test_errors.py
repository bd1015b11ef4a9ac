"""The tree of errors: what is what, and what each says at the door."""

import pytest

from fastapi_mesh import exceptions
from fastapi_mesh.exceptions import (
    CircuitBreakerOpenError,
    ConfigurationError,
    MeshError,
    ServiceDiscoveryError,
    ServiceUnavailableError,
    UpstreamConnectionError,
    UpstreamTimeoutError,
)


def every_error(root: type[MeshError] = MeshError) -> list[type[MeshError]]:
    return [root, *(each for child in root.__subclasses__() for each in every_error(child))]


@pytest.mark.spec("A3", "S-310", "S-311", "S-312", "B33")
def test_connection_and_timeout_errors_are_the_builtin_ones_too() -> None:
    assert issubclass(UpstreamConnectionError, ConnectionError)
    assert issubclass(UpstreamTimeoutError, TimeoutError)
    assert issubclass(CircuitBreakerOpenError, ServiceUnavailableError)
    assert not issubclass(ServiceDiscoveryError, ServiceUnavailableError)


def test_every_error_has_a_status_a_slug_of_its_own_and_a_sentence() -> None:
    errors = [each for each in every_error() if each.__module__ == exceptions.__name__]
    assert len(errors) >= 14
    assert len({each.reason for each in errors}) == len(errors)
    for each in errors:
        assert each.reason.replace("-", "").isalpha()
        assert 400 <= each.status < 600
        assert each.__doc__
        assert each.__name__ in (exceptions.__doc__ or "")


def test_a_configuration_error_lists_its_problems() -> None:
    error = ConfigurationError(problems=["a: wrong", "b: missing"], source="mesh.toml")
    assert str(error) == "mesh.toml: 2 problems\n  a: wrong\n  b: missing"
    assert ConfigurationError("just this").problems == ("just this",)
