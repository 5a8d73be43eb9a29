"""The Router's ports, on KeyVault, on Metering, and in memory."""
