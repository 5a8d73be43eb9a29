"""The typed async client that a platform service imports: `byok_client.client.ByokClient` and what it speaks of."""
