"""A browser's login at the gateway: OpenID Connect's code flow with PKCE, and sessions that browsers keep sealed."""
