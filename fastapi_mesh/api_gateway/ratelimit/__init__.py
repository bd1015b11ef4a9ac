"""Rate limits at the gateway: `layer` refuses, `limits` says which apply, `keys` who is counted, `engine` counts."""
