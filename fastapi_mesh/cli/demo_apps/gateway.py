"""The gateway: one address in front of the services, which it finds where they register."""

from fastapi_mesh import APIGateway, ServiceMesh

gateway = APIGateway(prefix="/api/v1", service_mesh=ServiceMesh("api-gateway"))
gateway.configure_routes(
    [
        {"path": "/users/*", "service": "user-service", "methods": ["GET"]},
        {"path": "/profiles/*", "service": "profile-service", "methods": ["GET"]},
        {"path": "/orders/*", "service": "order-service", "methods": ["GET"]},
    ]
)
# Five failed calls in a row open the circuit, as everywhere; here it is tried again after two seconds.
gateway.configure_services({"order-service": {"circuit_breaker": {"recovery_timeout": 2.0}}})
