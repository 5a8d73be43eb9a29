"""Generated from the protos of byok.keyvault; never edited."""
