"""Ways of putting a request on the wire to a provider, all behind the egress guard."""
