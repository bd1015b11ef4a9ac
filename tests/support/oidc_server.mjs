// A real OpenID Connect server for tests: node oidc_server.mjs PATH-OF-OIDC-PROVIDER, with its settings in OIDC_SETTINGS.
// Clients get opaque access tokens, and JWTs when they ask for the resource (RFC 8707) that the settings name. Users log
// in at a form that takes any name; `nobody` is refused.
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const { default: Provider, interactionPolicy } = await import(pathToFileURL(process.argv[2]));
const { port, keys, clients, resource, ttl, web } = JSON.parse(process.env.OIDC_SETTINGS);

const machines = clients.map(({ id, secret, scope }) => ({
  client_id: id,
  client_secret: secret,
  grant_types: ["client_credentials"],
  redirect_uris: [],
  response_types: [],
  scope,
}));
const browsers = {
  client_id: web.id,
  client_secret: web.secret,
  application_type: "native", // whose loopback addresses may have any port (RFC 8252 section 7.3)
  grant_types: ["authorization_code", "refresh_token"],
  response_types: ["code"],
  redirect_uris: ["http://127.0.0.1/auth/callback"],
  post_logout_redirect_uris: ["http://127.0.0.1/"],
};

const policy = interactionPolicy.base();
policy.get("consent").checks.remove("native_client_prompt"); // who is logged in needs no form again

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [...machines, browsers],
  jwks: { keys },
  scopes: ["openid", "profile", "read", "write"],
  claims: { openid: ["sub"], profile: ["name", "roles"] },
  conformIdTokenClaims: false,
  cookies: { keys: ["a-key-of-tests"] },
  pkce: { required: () => true },
  findAccount: (context, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: id.toUpperCase(), roles: id === "root" ? ["admin"] : ["user"] }),
  }),
  issueRefreshToken: (context, client) => client.grantTypeAllowed("refresh_token"),
  rotateRefreshToken: true,
  interactions: { policy, url: (context, interaction) => `/interaction/${interaction.uid}` },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
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
  ttl: { ClientCredentials: ttl, AccessToken: web.ttl, IdToken: 60, Interaction: 600, Session: 600, Grant: 600, RefreshToken: 600 },
});

async function interact(request, response) {
  const { params } = await provider.interactionDetails(request, response);
  if (request.method !== "POST") {
    response.setHeader("content-type", "text/html");
    response.end('<!doctype html><form method="post"><input name="login"><button id="go">Log in</button></form>');
    return;
  }
  let body = "";
  for await (const part of request) body += part;
  const accountId = new URLSearchParams(body).get("login");
  if (accountId === "nobody") {
    await provider.interactionFinished(request, response, { error: "access_denied" });
    return;
  }
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const grantId = await grant.save();
  await provider.interactionFinished(request, response, { login: { accountId }, consent: { grantId } });
}

const answer = provider.callback();
createServer((request, response) => {
  if (!request.url.startsWith("/interaction/")) return answer(request, response);
  return interact(request, response).catch((error) => {
    response.statusCode = 500;
    response.end(String(error));
  });
}).listen(port, "127.0.0.1", () => console.log("ready"));
