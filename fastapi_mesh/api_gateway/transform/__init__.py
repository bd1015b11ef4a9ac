"""Transformers: code of yours that changes requests on their way in and answers on their way out."""

from fastapi_mesh.api_gateway.transform.convert import JMESPath, JSONToXML, XMLToJSON
from fastapi_mesh.api_gateway.transform.fields import Fields
from fastapi_mesh.api_gateway.transform.messages import GatewayRequest, GatewayResponse
from fastapi_mesh.api_gateway.transform.timing import Elapsed, ResponseTime

__all__ = [
    "Elapsed",
    "Fields",
    "GatewayRequest",
    "GatewayResponse",
    "JMESPath",
    "JSONToXML",
    "ResponseTime",
    "XMLToJSON",
]
