"""The page of runs in other forms: Markdown, numbers in JSON, one picture."""
