"""Charts as SVG, each with a description in words."""
