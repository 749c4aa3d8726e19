"""The facts of runs, read from their files and compared; `words` makes sentences of them."""
