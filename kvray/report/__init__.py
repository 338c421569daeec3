"""What people read: computed as plain data first, then rendered."""
