"""The stages of a pipeline, one file each: the stage, and the function that puts it into a plan."""
