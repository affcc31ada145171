"""What a run tells the world: metrics with their meaning, their health, and the copies for dashboards."""
