"""What runs beside the database: maintenance, watching, health."""
