"""Speed: figures measured side by side in one run, never compared across runs."""
