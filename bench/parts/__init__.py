"""The parts of a bench run; each turns a room with a running suite into rows."""
