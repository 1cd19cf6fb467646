"""What is said of it: journal records, service manager, terminal."""
