"""A server and a demo to try things with."""
