"""What measures shiftproof for its own documentation."""
