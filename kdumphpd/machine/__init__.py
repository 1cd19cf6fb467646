"""What the running kernel says of the machine."""
