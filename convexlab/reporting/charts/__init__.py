"""Charts as SVG, each with what it shows in words."""
