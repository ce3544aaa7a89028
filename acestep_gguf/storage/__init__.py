"""Files that survive a kill, and folders of what can be computed again."""
