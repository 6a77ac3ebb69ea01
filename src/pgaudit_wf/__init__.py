"""Audit trail and workflow history inside PostgreSQL; the database does the work."""
