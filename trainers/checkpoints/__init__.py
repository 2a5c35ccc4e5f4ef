"""What a run leaves on disk so that it can go on: whole files, or none."""
