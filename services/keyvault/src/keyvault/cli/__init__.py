"""What an operator types: a thin client of KeyVault's own gRPC services. It holds no key and reads no database."""
