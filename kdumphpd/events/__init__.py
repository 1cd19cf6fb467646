"""From uevents to the decision when to look and when to update."""
