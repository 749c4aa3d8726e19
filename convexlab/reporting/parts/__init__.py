"""Parts of a run's page that combine sentences, charts and files: tables, downloads, and whole sections."""
