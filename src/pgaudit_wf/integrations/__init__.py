"""Adapters that bind the context of each request for a framework, or hand it to its database layer.

Each needs its framework installed, and none is imported unless asked for.
"""
