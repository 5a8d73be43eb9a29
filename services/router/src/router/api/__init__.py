"""The Router's gRPC face: requests in, answers and typed failures out."""
