"""Generated from the protos of byok.keyvault.v1; never edited."""
