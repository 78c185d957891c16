"""What belongs to the whole process: standard output, Control-C, files that are written, switches of libraries."""
