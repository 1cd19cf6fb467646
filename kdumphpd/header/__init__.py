"""The elfcorehdr: build it, read it, compare it."""
