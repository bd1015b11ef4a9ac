"""Authentication of a gateway's clients: providers of tokens and keys, and the port for your own."""

from fastapi_mesh.api_gateway.auth.api_key import APIKeyAuthProvider
from fastapi_mesh.api_gateway.auth.base import (
    AuthProvider,
    CredentialError,
    ExpiredCredentialError,
    FromCookie,
    FromHeader,
    FromQuery,
    ProviderUnavailableError,
    UnknownCredentialError,
    Verifier,
)
from fastapi_mesh.api_gateway.auth.jwt import JWTAuthProvider
from fastapi_mesh.api_gateway.auth.oauth2 import OAuth2AuthProvider
from fastapi_mesh.api_gateway.principal import Principal

__all__ = [
    "APIKeyAuthProvider",
    "AuthProvider",
    "CredentialError",
    "ExpiredCredentialError",
    "FromCookie",
    "FromHeader",
    "FromQuery",
    "JWTAuthProvider",
    "OAuth2AuthProvider",
    "Principal",
    "ProviderUnavailableError",
    "UnknownCredentialError",
    "Verifier",
]
