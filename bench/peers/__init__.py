"""Other gateways, for comparison: pinned, in folders of their own, stateless, in front of the same provider."""
