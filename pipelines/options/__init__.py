"""Every option of every stage, with its one line of documentation."""
