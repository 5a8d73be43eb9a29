"""One class per RPC or job: what happens, in which order."""
