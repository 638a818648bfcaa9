"""Foundations of all other folders. Import its modules one by one: the command line needs some before torch loads."""
