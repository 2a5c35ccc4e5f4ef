"""The programs that run exported files, and what they are fed."""
