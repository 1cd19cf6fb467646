"""Getting an image into the reservation: checks, system calls, full and delta loads."""
