"""Other libraries, timed beside this one."""
