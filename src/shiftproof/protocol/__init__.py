"""How methods are compared fairly: dialects of the protocol, settings to search and rules to select by."""
