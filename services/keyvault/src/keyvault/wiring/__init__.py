"""Puts adapters, use cases and servicers together, a module for each gRPC service and worker."""
