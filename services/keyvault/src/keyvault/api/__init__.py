"""The gRPC face: protobuf in, domain out, and back."""
