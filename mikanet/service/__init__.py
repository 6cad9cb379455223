"""What every twistd service shares: options, secrets, the state folder, listening, and an orderly end."""
