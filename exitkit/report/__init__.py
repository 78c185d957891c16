"""What results look like: tables and the report folder."""
