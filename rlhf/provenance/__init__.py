"""What a result depends on and what it was made with: settings, code, data, versions, samples."""
