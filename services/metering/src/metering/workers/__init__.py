"""What runs all the time: flush, expire, rebuild, licence, reconcile."""
