"""Helpers that tests of several subjects share; pytest collects nothing here."""
