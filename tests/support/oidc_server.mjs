// A real OpenID Connect server for tests: node oidc_server.mjs PATH-OF-OIDC-PROVIDER, with its settings in OIDC_SETTINGS.
// Clients get opaque access tokens, and JWTs when they ask for the resource (RFC 8707) that the settings name.
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const { default: Provider } = await import(pathToFileURL(process.argv[2]));
const { port, keys, clients, resource, ttl } = JSON.parse(process.env.OIDC_SETTINGS);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: clients.map(({ id, secret, scope }) => ({
    client_id: id,
    client_secret: secret,
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
    scope,
  })),
  jwks: { keys },
  scopes: ["read", "write"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: () => ({
        scope: "read write",
        audience: resource,
        accessTokenFormat: "jwt",
        accessTokenTTL: ttl,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
  ttl: { ClientCredentials: ttl },
});

createServer(provider.callback()).listen(port, "127.0.0.1", () => console.log("ready"));
