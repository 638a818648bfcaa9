"""`make check-gpu`: whether shiftproof is right and fast on this machine's GPU, told within eight minutes.

Runs from a checkout with whatever torch is there; nothing needs to be installed. Every check is a child process with a
share of the time. `plan` says what is checked, `sizes` on what; `checks` runs them, `table` shows them.
"""
