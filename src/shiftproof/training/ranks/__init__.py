"""One run on several devices: what each has of it, and how their processes are started."""
