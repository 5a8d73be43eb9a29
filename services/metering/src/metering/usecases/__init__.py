"""What the service does, one verb a module, in terms of ports."""
