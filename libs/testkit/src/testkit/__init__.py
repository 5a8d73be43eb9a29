"""Embedded Postgres and Redis, throw-away CA, fakes of ports, provider simulator."""
