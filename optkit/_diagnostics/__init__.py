"""What a human looks at: figures, and a progress bar."""
