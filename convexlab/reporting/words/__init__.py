"""Every sentence about a run."""
