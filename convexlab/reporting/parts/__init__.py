"""What is made of sentences, charts and files for the page of a run: its tables, its downloads, and whole parts."""
