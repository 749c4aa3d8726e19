"""Numbers and verdicts in words: a page, a terminal and a result say the same."""
