"""Pure rules and words of the Router: no I/O, no clock, no gRPC."""
