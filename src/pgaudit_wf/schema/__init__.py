"""Installing, upgrading and removing the schema."""
