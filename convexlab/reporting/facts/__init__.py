"""What a page knows of a run: read from its files, compared, nothing said yet."""
