"""Jobs that run next to the database: maintenance, monitoring, health."""
