"""What any file asks for: bounded reading, what file systems refuse, and no secret in what is written."""
