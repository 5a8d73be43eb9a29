"""The wire: servicers, mapping, the error table."""
