"""What the ports are made of: Postgres, root-key providers, HPKE, and memory for tests."""
