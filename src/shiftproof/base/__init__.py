"""What everything stands on. Each module is a face of its own: the command line needs some before torch is loaded."""
