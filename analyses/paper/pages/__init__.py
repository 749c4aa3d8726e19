"""The pages and charts of the studies."""
