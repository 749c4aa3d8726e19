"""The machine: its device, memory and random state, float32 that is float32, files that appear whole."""
