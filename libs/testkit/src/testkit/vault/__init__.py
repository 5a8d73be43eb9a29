"""The transit engine of Vault and OpenBao: a faithful fake, and what sets a real one or the fake up."""
