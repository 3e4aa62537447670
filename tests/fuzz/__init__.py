"""Files that anybody may have made up: whatever is in them, only the documented errors come of it."""
